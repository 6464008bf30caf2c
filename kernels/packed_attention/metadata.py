"""What a packed batch needs besides its tokens, from cu_seqlens where they lie: on a GPU one launch, without waiting.

    metadata = batch_metadata(batch.cu_seqlens, num_rows=16_384, block_q=128, block_k=64, weights=batch.weights["ce"])
    metadata.plan, metadata.segment_of_row, metadata.positions, metadata.loss_rows[: ...]

The tables equal `build_tile_plan`'s bit for bit. On the CPU the same C++ text runs with an emulated thread block
(csrc/common/batch_metadata.hpp), which is how it is tested without a GPU.

Shape suffixes: T rows of the batch, S segments.
"""

from dataclasses import dataclass

import torch

from osim_core import _native
from osim_kernels.packed_attention.tiles import TileCapacity, TilePlan

PART_ALIGNMENT = 32  # int32 values; csrc/common/batch_buffer.hpp


@dataclass(frozen=True, eq=False)
class BatchMetadata:
    """All on the device of cu_seqlens, int32.

    plan            tables of fixed capacity, spare rows zero
    segment_of_row  [T]; rows behind the last border get S
    positions       [T]; offset in the segment's sequence: its ancestors' tokens come before its own
    loss_rows       [T] rows of weight != 0, ascending, then -1; None without weights
    counts          [5]; query tiles, pieces, key tiles and visits that the batch needs, and rows that carry loss
    """

    plan: TilePlan
    segment_of_row: torch.Tensor
    positions: torch.Tensor
    loss_rows: torch.Tensor | None
    counts: torch.Tensor

    def check(self) -> None:
        """Raises ValueError where cu_seqlens or parents were malformed or the capacity too small; the plan is all
        zero then, and attention with it returns zeros. Waits for the device: call it where the host waits anyway."""
        needed = self.counts.tolist()[:4]
        if min(needed) < 0:
            raise ValueError(
                "cu_seqlens must start at 0, never decrease and end within the rows, "
                "and parents must be -1, the segment before or one of its ancestors"
            )
        for name, count in zip(TileCapacity._fields, needed, strict=True):
            room = len(getattr(self.plan, name))
            if count > room:
                raise ValueError(f"the batch needs {count} {name.replace('_', ' ')}, and the capacity is {room}")


def batch_metadata(
    cu_seqlens: torch.Tensor,
    *,
    num_rows: int,
    block_q: int,
    block_k: int,
    window: int | None = None,
    parents: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    capacity: TileCapacity | None = None,
) -> BatchMetadata:
    """Tile plan, segments, positions and loss rows of one packed batch.

    cu_seqlens  int32 [S + 1] on the CPU or a GPU: from 0, never decreasing, to at most num_rows. Repeated last borders
                (sentinels) keep S, and with it every shape, the same from batch to batch
    num_rows    T
    window      how many of the latest tokens a query sees, itself included; None for all
    parents     int32 [S]: the segment whose content precedes this one's, or -1; None where nothing is shared. In
                depth-first order: a parent is the segment before or one of that one's ancestors
    weights     fp32 [T]; rows of weight 0 are left out of loss_rows
    capacity    rows of the tables; None for `TileCapacity.of_segments`, which holds any batch without parents

    Raises ValueError for arguments of a wrong type, shape or device, for parents without a capacity, and on the CPU for
    what `BatchMetadata.check` finds; on a GPU that would be a wait, so there the caller chooses the moment. Raises
    RuntimeError for a CUDA tensor where csrc/cuda is not built.
    """
    segments = cu_seqlens.numel() - 1
    if capacity is None:
        if parents is not None:
            raise ValueError("parents need a capacity: TileCapacity.of_segments(..., max_depth=, max_descendants=)")
        capacity = TileCapacity.of_segments(num_rows, max(segments, 0), block_q, block_k)
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    reach = 0 if window is None else min(window, num_rows + 1)
    arguments = (cu_seqlens, parents, weights, num_rows, block_q, block_k, reach, list(capacity))
    if cu_seqlens.is_cuda:
        buffer = _cuda().batch_metadata(*arguments)
    else:
        for name, vector, dtype in (
            ("cu_seqlens", cu_seqlens, torch.int32),
            ("parents", parents, torch.int32),
            ("weights", weights, torch.float32),
        ):
            if vector is not None and (vector.dtype, vector.dim(), vector.device.type) != (dtype, 1, "cpu"):
                raise ValueError(
                    f"{name}: expected {dtype} [n] on the CPU as cu_seqlens, got {vector.dtype} "
                    f"{list(vector.shape)} on {vector.device}"
                )
        buffer = torch.from_numpy(_native.batch_metadata(*arguments))

    query_room, piece_room, key_room, visit_room = capacity
    begin, parts = 0, []
    for *shape, width in (
        (5,),
        (query_room, 4),
        (piece_room, 3),
        (key_room, 4),
        (visit_room, 3),
        (num_rows,),
        (num_rows,),
        (num_rows if weights is not None else 0,),
    ):
        size = width * (shape[0] if shape else 1)
        parts.append(buffer[begin : begin + size].view(*shape, width))
        begin += -(-size // PART_ALIGNMENT) * PART_ALIGNMENT
    counts, query_tiles, pieces, key_tiles, visits, segment_of_row, positions, loss_rows = parts
    metadata = BatchMetadata(
        TilePlan(query_tiles, pieces, key_tiles, visits, block_q, block_k, num_rows, num_rows, window),
        segment_of_row,
        positions,
        loss_rows if weights is not None else None,
        counts,
    )
    if not cu_seqlens.is_cuda:
        metadata.check()
    return metadata


def _cuda():
    try:
        from osim_core import _cuda
    except ModuleNotFoundError as error:
        raise RuntimeError("osim_core._cuda is not built: it needs nvcc when OSim Core is installed") from error
    return _cuda
