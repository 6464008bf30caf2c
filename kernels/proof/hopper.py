"""An H100 that is not there: ordinary Triton launches go through the real compiler and are recorded, not run.

    with recording() as launches:
        op(torch.empty(..., device=DEVICE), ...)       # kernel[grid](...), autotuned or not, descriptors or pointers
    launches[0].kernel, launches[0].cubin, launches[0].metadata.num_warps

Launches specialise on their arguments (alignment, constants), so what is recorded is the code a GPU would run for
that call. Tensors live on the meta device (no memory) or the CPU; their values never matter, because no kernel
runs: code between launches that reads a kernel's result sees garbage. @triton.autotune compiles every configuration
that fits, each recorded, then keeps the first.

Use a process of its own, without TRITON_INTERPRET: that variable is read when a kernel is defined, and kernels
compiled here stay in their functions' caches without anything behind them.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from osim_kernels.proof import occupancy, sass

DEVICE = torch.device("meta")
PROPERTIES = {
    "max_shared_mem": occupancy.SHARED_BYTES_PER_BLOCK,
    "max_num_regs": occupancy.REGISTERS,
    "multiprocessor_count": occupancy.STREAMING_MULTIPROCESSORS,
    "warpSize": 32,
    "sm_clock_rate": 1_980_000,
    "mem_clock_rate": 2_619_000,
    "mem_bus_width": 5120,
}


@dataclass(frozen=True)
class Launch:
    """One launch: kernel name, grid, constant arguments by name, types of the others ("*bf16", "i32"), Triton's
    metadata and the machine code."""

    kernel: str
    grid: tuple[int, int, int]
    constants: dict[str, Any]
    signature: dict[str, Any]
    metadata: Any
    cubin: bytes


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Make the absent H100 Triton's device for the block and yield the list its launches are added to.

    Raises RuntimeError under TRITON_INTERPRET; a launch that needs more than 227 KiB of shared memory raises
    triton's OutOfResources, as on the card.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("hopper.recording compiles kernels, but TRITON_INTERPRET is set: use another process")
    _driver.launches = []
    before = triton.runtime.driver._active  # None until a first launch: reading .active would ask for a real GPU
    triton.runtime.driver.set_active(_driver)
    try:
        yield _driver.launches
    finally:
        triton.runtime.driver._active = before


class _Utils:
    def get_device_properties(self, device):
        return PROPERTIES

    def load_binary(self, name, cubin, shared_bytes, device):
        found = sass.resources(cubin)
        return object(), cubin, found.registers, found.stack_bytes, 1024

    def unload_module(self, module):
        pass


class _Interface:
    @staticmethod
    def current_device():
        return 0

    @staticmethod
    def synchronize(*_):
        pass


class _AbsentH100(DriverBase):
    def __init__(self):
        super().__init__()
        self.utils = _Utils()
        self.launches: list[Launch] = []

    @classmethod
    def is_active(cls):
        return True

    def map_python_to_cpp_type(self, ty):
        return ty

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def set_current_device(self, device):
        pass

    def get_current_stream(self, device=0):
        return 0

    def get_active_torch_device(self):
        return DEVICE

    def get_device_interface(self):
        return _Interface

    def get_empty_cache_for_benchmark(self):
        return torch.empty(1)

    def clear_cache(self, cache):
        pass

    def get_benchmarker(self):
        def measure(kernel_call, quantiles=(0.5,), **_):
            kernel_call()
            return [1.0] * len(quantiles)

        return measure

    def launcher_cls(self, source, metadata):
        names = source.fn.arg_names
        constants = {names[path[0]]: value for path, value in source.constants.items() if len(path) == 1}

        def launch(x, y, z, stream, cubin, packed_metadata, launch_metadata, enter_hook, exit_hook, *arguments):
            self.launches.append(Launch(source.fn.__name__, (x, y, z), constants, source.signature, metadata, cubin))

        return launch


_driver = _AbsentH100()
