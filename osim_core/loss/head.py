"""From the last hidden states to per-token log-probabilities, without a [tokens, vocabulary] tensor.

Plugged into GPTModel.forward as its `output_processor`, so it runs on the last pipeline stage only, under any
tensor-, sequence- or context-parallel layout. Shape suffixes: L local tokens, D model width, V vocabulary rows here.
"""

from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)

from osim_kernels.fused_linear_logprob import fused_linear_logprob


@dataclass(frozen=True)
class HeadTargets:
    """labels_L int64 [L]; needed_L float32 [L], zero where no stream wants the token (its row is skipped); active_rows,
    how many are not zero, counted on the host so that a GPU is not waited for."""

    labels_L: torch.Tensor
    needed_L: torch.Tensor
    active_rows: int


def token_logprobs(*, hidden_states, output_layer, output_weight, context: HeadTargets, config, **_) -> torch.Tensor:
    """fp32 [L]: log p(label) of each local token; 0 where it is not needed.

    hidden_states [L (/ tensor-parallel size under sequence parallelism), 1, D]; the head's rows are this rank's
    share of the vocabulary.
    """
    if config.sequence_parallel:
        hidden = gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=True)
    else:
        hidden = copy_to_tensor_model_parallel_region(hidden_states)  # backward sums the ranks' partial gradients
    weight_VD = output_layer.weight if output_weight is None else output_weight
    group = parallel_state.get_tensor_model_parallel_group()
    logprob_L, _ = fused_linear_logprob(
        hidden.squeeze(1),
        weight_VD,
        context.labels_L,
        weights_T=context.needed_L,
        active_rows=context.active_rows,
        tensor_parallel_group=group,
        vocab_start=group.rank() * weight_VD.shape[0],
    )
    return logprob_L
