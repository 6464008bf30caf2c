"""Memory checks for interpreted Triton kernels.

    with checked(q=q, out=out):
        kernel[grid](q, out, ...)          # or an op that launches several kernels and allocates between them

Every active lane of a load, store or atomic, through pointers or descriptors, is checked before memory is touched:

- out of bounds: a launch may touch the exact extent of the tensors it was given, and nothing else;
- uninitialised: reading an element of a tensor that torch.empty made inside the block and nobody wrote since;
- races: within one launch, an element that one program writes may be neither written nor read by another. The
  interpreter runs programs in order and hides those; on a GPU their order is open. Atomics may meet atomics.

The first finding raises KernelFault, which names the tensor, the program and the line of the kernel. Costs little
beside the interpreter itself. Limits: nothing inside one program (no threads, no shared memory), no 32-bit overflow
of offsets that stays inside a tensor, and views that interleave in memory are checked as one.
"""

import contextlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter as stock
from triton.runtime.errors import InterpreterError
from triton.tools.tensor_descriptor import TensorDescriptor

NOBODY, SEVERAL = -1, -2
NOT_KERNELS = tuple(str(Path(path).parent) for path in (__file__, triton.__file__, torch.__file__))
ALLOCATES = {
    torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default, torch.ops.aten.empty_like.default,
    torch.ops.aten.new_empty.default, torch.ops.aten.new_empty_strided.default,
}  # fmt: skip
REWIRES = {torch.ops.aten.set_.source_Storage_storage_offset, torch.ops.aten.set_.source_Tensor}


class KernelFault(AssertionError):
    """An access that a GPU would answer with garbage, a crash, or a different value every run."""


@dataclass
class Region:
    """Memory of one launch argument, or of several that interleave, [start, stop) in bytes; logs per `grain` bytes."""

    start: int
    stop: int
    names: list[str]
    grain: int
    writer: np.ndarray = field(init=False)
    reader: np.ndarray = field(init=False)
    updated: np.ndarray = field(init=False)

    def __post_init__(self):
        length = -(-(self.stop - self.start) // self.grain)
        self.writer = np.full(length, NOBODY, np.int32)
        self.reader = np.full(length, NOBODY, np.int32)
        self.updated = np.zeros(length, bool)

    @property
    def name(self) -> str:
        return ", ".join(self.names)


class Watch(TorchDispatchMode):
    """State of one `checked` block: the regions of the running launch and the unwritten bytes of fresh tensors."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.names = {_extent(tensor): name for name, tensor in tensors.items()}
        self.regions: list[Region] = []
        self.starts = np.zeros(0, np.uint64)
        # address of a storage -> which of its bytes nobody wrote yet, and the storage, so that its address stays taken
        self.unwritten: dict[int, np.ndarray] = {}
        self.kept: list[torch.UntypedStorage] = []

    # tensors that come and go between launches

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        if function in ALLOCATES:
            storage = result.untyped_storage()
            self.unwritten[storage.data_ptr()] = np.ones(storage.nbytes(), bool)
            self.kept.append(storage)
        elif function not in REWIRES:
            for tensor in _written_by(function, arguments, named or {}, result):
                self._mark_written(tensor)
        return result

    def _mark_written(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.numel() and storage.data_ptr() in self.unwritten:
            start, stop = (border - storage.data_ptr() for border in _extent(tensor))
            self.unwritten[storage.data_ptr()][start:stop] = False

    # launches

    def begin(self, arguments: dict[str, torch.Tensor]) -> None:
        """A launch starts: these tensors may be touched, and no access of an earlier launch can race with it."""
        spans = sorted(
            (*_extent(tensor), self.names.get(_extent(tensor), name), tensor.element_size())
            for name, tensor in arguments.items()
            if tensor.numel()
        )
        self.regions = []
        for start, stop, name, grain in spans:
            last = self.regions[-1] if self.regions else None
            if last and start < last.stop:
                names = last.names if name in last.names else [*last.names, name]
                self.regions[-1] = Region(last.start, max(stop, last.stop), names, min(grain, last.grain))
            else:
                self.regions.append(Region(start, stop, [name], grain))
        self.starts = np.array([region.start for region in self.regions], np.uint64)

    def access(self, pointers, mask, kind: str) -> None:
        """Check the active lanes of one access; kind is "load", "store" or "atomic"."""
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses, active = np.broadcast_arrays(pointers.data, np.asarray(mask.data))
        addresses = addresses[active].astype(np.int64)
        if not addresses.size:
            return
        owner = np.searchsorted(self.starts, addresses.astype(np.uint64), side="right") - 1
        stops = np.array([region.stop for region in self.regions] or [0])
        inside = (owner >= 0) & (addresses + size <= stops[owner])
        if not inside.all():
            self._out_of_bounds(addresses[~inside], len(addresses), kind)
        for index in np.unique(owner):
            region = self.regions[index]
            mine = np.unique(addresses[owner == index])
            self._initialised(region, mine, size, kind)
            self._ordered(region, mine - region.start, size, kind)

    def _out_of_bounds(self, outside: np.ndarray, lanes: int, kind: str) -> None:
        first = int(outside[0])
        if not self.regions:
            raise KernelFault(f"{kind} by a launch without tensors, {_where()}")
        distances = [max(region.start - first, first - region.stop + 1) for region in self.regions]
        near = self.regions[int(np.argmin(distances))]
        past = first >= near.start
        place = f"{first - near.stop} bytes past the end of" if past else f"{near.start - first} bytes before"
        raise KernelFault(
            f"{kind} out of bounds: {outside.size} of {lanes} lanes, first {place} {near.name}, {_where()}"
        )

    def _initialised(self, region: Region, addresses: np.ndarray, size: int, kind: str) -> None:
        for base, unwritten in self.unwritten.items():
            if base <= region.start < base + unwritten.size:
                touched = addresses[:, None] - base + np.arange(size)
                if kind != "store" and unwritten[touched].any():
                    count = int(unwritten[touched].any(1).sum())
                    raise KernelFault(f"{kind} of {count} uninitialised elements of {region.name}, {_where()}")
                unwritten[touched] = False

    def _ordered(self, region: Region, offsets: np.ndarray, size: int, kind: str) -> None:
        grains = max(1, size // region.grain)
        at = (offsets[:, None] // region.grain + np.arange(grains)).ravel()
        program = _program()
        foreign_write = (region.writer[at] != NOBODY) & (region.writer[at] != program)
        foreign_read = (region.reader[at] != NOBODY) & (region.reader[at] != program)
        if foreign_write.any():
            done = {"load": "read", "store": "written again", "atomic": "updated"}[kind]
            raise KernelFault(f"race: {region.name} written by one program and {done} by another, {_where()}")
        if kind != "load" and foreign_read.any():
            raise KernelFault(f"race: {region.name} read by one program and written by another, {_where()}")
        if kind != "atomic" and region.updated[at].any():
            raise KernelFault(f"race: plain {kind} of {region.name}, which atomics update, {_where()}")
        if kind == "load":
            seen = region.reader[at]
            region.reader[at] = np.where((seen == NOBODY) | (seen == program), program, SEVERAL)
        elif kind == "store":
            region.writer[at] = program
        else:
            region.updated[at] = True


@contextlib.contextmanager
def checked(**tensors: torch.Tensor) -> Iterator[Watch]:
    """Check every interpreted launch in the block; the names given are used in messages.

    Raises KernelFault at the first finding. Blocks do not nest.
    """
    watch = Watch(tensors)
    builder, executor = stock.InterpreterBuilder, stock.GridExecutor
    load, store = builder.create_masked_load, builder.create_masked_store
    update, swap, prepare = builder.create_atomic_rmw, builder.create_atomic_cas, executor._init_args_hst

    def create_masked_load(self, pointers, mask, *rest, **named):
        watch.access(pointers, mask, "load")
        return load(self, pointers, mask, *rest, **named)

    def create_masked_store(self, pointers, value, mask, *rest, **named):
        watch.access(pointers, mask, "store")
        return store(self, pointers, value, mask, *rest, **named)

    def create_atomic_rmw(self, op, pointers, value, mask, sem, scope):
        watch.access(pointers, mask, "atomic")
        return update(self, op, pointers, value, mask, sem, scope)

    def create_atomic_cas(self, pointers, *rest):
        watch.access(pointers, stock.TensorHandle(np.ones_like(pointers.data, bool), stock.tl.int1), "atomic")
        return swap(self, pointers, *rest)

    def init_args_hst(self, positional, named):
        on_host = prepare(self, positional, named)
        arguments = [*zip(self.arg_names, on_host[0], strict=False), *on_host[1].items()]
        watch.begin(dict(pair for name, value in arguments for pair in _tensors(name, value)))
        return on_host

    builder.create_masked_load, builder.create_masked_store = create_masked_load, create_masked_store
    builder.create_atomic_rmw, builder.create_atomic_cas = create_atomic_rmw, create_atomic_cas
    executor._init_args_hst = init_args_hst
    try:
        with watch:
            yield watch
    except InterpreterError as error:
        fault = error
        while fault is not None and not isinstance(fault, KernelFault):
            fault = fault.__cause__
        if fault is None:
            raise
        raise fault from None
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store
        builder.create_atomic_rmw, builder.create_atomic_cas = update, swap
        executor._init_args_hst = prepare


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First and one past the last byte that indexing the tensor can reach (strides are never negative in PyTorch)."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return tensor.data_ptr(), tensor.data_ptr() + max(0, reach if tensor.numel() else 0) * tensor.element_size()


def _tensors(name: str, value) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, TensorDescriptor):
        yield name, value.base
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _tensors(f"{name}[{index}]", item)


def _written_by(function, arguments, named, result) -> Iterator[torch.Tensor]:
    """Tensors that a PyTorch operator writes: mutated arguments and results."""
    schema = function._schema.arguments
    given = [*zip(schema, arguments, strict=False), *((a, named[a.name]) for a in schema if a.name in named)]
    mutated = [value for argument, value in given if argument.alias_info is not None and argument.alias_info.is_write]
    views = any(returned.alias_info is not None for returned in function._schema.returns)
    for value in (*mutated, *(() if views else (result,))):
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, torch.Tensor):
                yield item


def _program() -> int:
    x, y, z = stock.interpreter_builder.grid_idx
    _, height, depth = stock.interpreter_builder.grid_dim
    return (x * height + y) * depth + z


def _where() -> str:
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(NOT_KERNELS):
            place = f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}: {frame.line}"
            return f"program {stock.interpreter_builder.grid_idx}, {place}"
    return f"program {stock.interpreter_builder.grid_idx}"
