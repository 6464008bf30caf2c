"""The warnings of megatron-core and torch that say nothing to a person at the keyboard, each with the reason.

Only these, by logger or module and by text; anything new is shown. `silence()` is for ranks (layout.initialize calls
it before megatron-core is imported), `silence_launcher()` for the process that starts them.
"""

import logging
import warnings

import torch

# (logger, text, why)
LOG_LINES = (
    ("megatron.core.models.gpt.gpt_model", "GPTModel IS DEPRECATED", "the version is pinned; moving is a project"),
    ("megatron.core.distributed.distributed_data_parallel", "full_param_layout not provided", "the default is wanted"),
    ("megatron.core.dist_checkpointing.strategies.torch", "MCore's async save is deprecated", "nvrx needs CUDA"),
    # the two below come before CheckpointStore's own line, which names the folder and the fix
    ("megatron.core.dist_checkpointing.strategies.filesystem_async", "No space left on device", "said once, by us"),
    ("megatron.core.dist_checkpointing.strategies.filesystem_async", "while starting worker", "has no content"),
)
# (category, module, start of the text, why)
WARNINGS = (
    (UserWarning, r"megatron\.core\.models\.mimo", "MimoModelConfig is experimental", "not used here"),
    (UserWarning, r"megatron\.core\.transformer\.transformer_config", "full scope is deprecated", "its own default"),
    (FutureWarning, r"torch\.distributed\.c10d_logger", ".*_tensor` is deprecated", "megatron-core uses the old names"),
    (UserWarning, r"osim_core\.parallel\.device", "The .grad attribute of a Tensor", "megatron-core asks every tensor"),
)
# On a GPU these say that a faster kernel is missing, so they are silent only where no GPU is
LOG_LINES_CPU = (("torch.utils.cpp_extension", "No CUDA runtime is found", "nvcc without a GPU, as in CI"),)
WARNINGS_CPU = (
    (UserWarning, r"megatron\.core\.", "Transformer Engine and Apex are not installed", "both need CUDA"),
    (UserWarning, r"megatron\.core\.", "Apex is not installed", "needs CUDA"),
    (UserWarning, r"megatron\.core\.tensor_parallel", "When using sequence parallelism", "is about CUDA streams"),
)


def silence() -> None:
    """Drop the lines above in this process."""
    here = torch.cuda.is_available()
    for name, text, _ in LOG_LINES if here else LOG_LINES + LOG_LINES_CPU:
        logging.getLogger(name).addFilter(lambda record, text=text: text not in record.getMessage())
    for category, module, text, _ in WARNINGS if here else WARNINGS + WARNINGS_CPU:
        warnings.filterwarnings("ignore", text, category, module)


def silence_launcher() -> None:
    """torchelastic narrates how it ends the peers of a failed rank; the rank itself has said what was wrong, and
    launch.start_ranks says it of a rank that could not."""
    for name in ("multiprocessing.api", "agent.server.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
