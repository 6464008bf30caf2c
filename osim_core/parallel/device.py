"""One program for laptops and H100s: where CUDA is missing, the parts of `torch.cuda` that megatron-core reads are
given CPU meanings, so its schedules, optimizers and checkpoints run unmodified on gloo. This is the only module
that replaces attributes of other packages, and with CUDA present `install()` does nothing.

Call `install()` before the first import of megatron.core. Pinned to megatron-core 0.19.2 (47 call sites).
"""

import contextlib
import logging

import torch

CPU = torch.device("cpu")


class _Stream:
    """Work on the CPU is done when the call returns, so waiting is a no-op."""

    def __init__(self, *args, **kwargs) -> None: ...

    def wait_stream(self, other) -> None: ...

    def wait_event(self, event) -> None: ...

    def synchronize(self) -> None: ...


class _Generators:
    """torch.cuda.default_generators: every device index means torch's CPU generator."""

    def __getitem__(self, index: int) -> torch.Generator:
        return torch.default_generator


class _CudaMeansCpu(torch.overrides.TorchFunctionMode):
    """Rewrites `device="cuda"`, `Tensor.cuda()` and `pin_memory=True`; answers `Tensor.type()` with a CUDA name."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if isinstance(device, (str, torch.device)) and str(device).startswith("cuda"):
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # megatron-core recognises float buffers by the string "torch.cuda.FloatTensor"
            return func(*args).replace("torch.", "torch.cuda.")
        return func(*args, **kwargs)


_installed = False


def install() -> None:
    """Give megatron-core a CPU "cuda". Does nothing where CUDA is available, and nothing the second time."""
    global _installed
    if torch.cuda.is_available() or _installed:
        return
    _installed = True
    cuda, generator = torch.cuda, torch.default_generator
    cuda.current_device = lambda: CPU
    cuda.synchronize = cuda.empty_cache = lambda *args: None
    cuda.Stream, cuda.current_stream = _Stream, _Stream
    cuda.stream = lambda stream: contextlib.nullcontext()
    cuda._lazy_init, cuda._lazy_call = (lambda: None), (lambda call, **kwargs: call())
    cuda.default_generators = _Generators()
    cuda.get_rng_state = cuda.random.get_rng_state = lambda device=None: generator.get_state()
    cuda.manual_seed = generator.manual_seed
    cuda.manual_seed_all = lambda seed: None  # torch.manual_seed calls it, after seeding the CPU generator
    logging.getLogger("megatron.core.tensor_parallel.random").addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()
    )
    _CudaMeansCpu().__enter__()


def device() -> torch.device:
    """The device of this rank: its CUDA device, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else CPU


def backend() -> str:
    """The collective backend of this machine."""
    return "nccl" if torch.cuda.is_available() else "gloo"
