"""Triton: both heads' logit tiles side by side in registers, reduced at once; nothing of size V reaches memory.

Forward and reverse KL take one pass over the vocabulary, Jensen-Shannon two (its mixture needs both normalisers).
Programs are row tiles x splits of the vocabulary; splits, like ranks, are joined by `merge` in a fixed order, so equal
inputs give equal bits. Backward recomputes a chunk of logits, writes their gradient into a bounded workspace and leaves
the two products to cuBLAS.

Shape suffixes: N tokens of non-zero weight, D and E hidden sizes of student and teacher, V this rank's vocabulary rows,
C columns of a chunk, R x C one tile inside kernels, K its slice of a hidden size.
"""

import math
from dataclasses import dataclass

import torch
import triton

from osim_kernels.fused_linear_kl.chunked import Gradients, finish, finish_mixture, normalisers, over_ranks
from osim_kernels.fused_linear_kl.divergence import Divergence, Scaling, merge, no_statistics
from osim_kernels.fused_linear_kl.triton_kernels import _mixture_kernel, _slope_kernel, _statistics_kernel

WORKSPACE_BYTES = 256 << 20  # of one chunk's gradient of the logits, whatever N and V are
PROGRAMS = 264  # two for each SM of an H100: the vocabulary is split until there are as many


@dataclass(frozen=True)
class Tile:
    """Rows x columns of a program's two logit tiles, the slice of the hidden size it multiplies at once, launch."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{self.depth}, {self.num_warps} warps, {self.num_stages} stages"


# Chosen by compilation alone: the largest tiles whose two fp32 accumulators leave no spill (README).
HALF_TILE = Tile(128, 128, 64, num_warps=8, num_stages=3)
SINGLE_TILE = Tile(64, 64, 16, num_warps=8, num_stages=2)
CANDIDATES = (
    HALF_TILE,
    Tile(128, 64, 64, num_warps=8, num_stages=3),
    Tile(64, 128, 64, num_warps=4, num_stages=3),
    Tile(128, 128, 64, num_warps=8, num_stages=2),
    Tile(128, 128, 32, num_warps=8, num_stages=4),
)


def tile_of(dtype: torch.dtype) -> Tile:
    """The static choice for operands of this dtype."""
    return SINGLE_TILE if dtype == torch.float32 else HALF_TILE


def chunk_columns(num_rows: int, real_rows: int, element_size: int, tile: Tile) -> int:
    """Columns of one backward chunk: as many as fit WORKSPACE_BYTES, whole tiles, at least one tile."""
    fitting = WORKSPACE_BYTES // (max(num_rows, 1) * element_size) // tile.columns
    return max(1, min(fitting, triton.cdiv(real_rows, tile.columns))) * tile.columns


def fused_linear_kl_triton(
    student_ND, student_VD, teacher_NE, teacher_VE, *, real_rows, group, divergence, student, teacher
):
    return _FusedLinearKL.apply(
        student_ND.contiguous(),
        student_VD.contiguous(),
        teacher_NE.contiguous(),
        teacher_VE.contiguous(),
        real_rows,
        group,
        divergence,
        student,
        teacher,
    )


class _FusedLinearKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        student_ND,
        student_VD,
        teacher_NE,
        teacher_VE,
        real_rows,
        group,
        divergence: Divergence,
        student: Scaling,
        teacher: Scaling,
    ):
        heads = (student_ND, student_VD, student), (teacher_NE, teacher_VE, teacher)
        lead, other = heads if divergence.student_leads else heads[::-1]
        num_rows = student_ND.shape[0]
        tile = tile_of(student_ND.dtype)
        num_splits, columns_per_split = _splits(num_rows, real_rows, tile)
        parts = [no_statistics(num_rows, student_ND)[None]]
        if num_splits:
            parts_W5N = torch.empty(num_splits, 5, num_rows, dtype=torch.float32, device=student_ND.device)
            _statistics_kernel[(triton.cdiv(num_rows, tile.rows), num_splits)](
                *_operands(*lead),
                *_operands(*other),
                parts_W5N,
                num_rows,
                real_rows,
                columns_per_split,
                **_meta(tile, lead, other),
            )
            parts.append(parts_W5N)
        stats_5N = merge(over_ranks(merge(torch.cat(parts)), group))
        if divergence.kind == "jsd":
            norms_4N = normalisers(stats_5N, divergence).contiguous()
            sums_2N = torch.zeros_like(norms_4N[:2])
            if num_splits:
                parts_W2N = torch.empty(num_splits, 2, num_rows, dtype=torch.float32, device=student_ND.device)
                _mixture_kernel[(triton.cdiv(num_rows, tile.rows), num_splits)](
                    *_operands(*heads[0]),
                    *_operands(*heads[1]),
                    norms_4N,
                    parts_W2N,
                    num_rows,
                    real_rows,
                    columns_per_split,
                    math.log(divergence.beta),
                    math.log1p(-divergence.beta),
                    **_meta(tile, *heads),
                )
                sums_2N = parts_W2N.sum(dim=0)
            value_N, saved_5N = finish_mixture(norms_4N, over_ranks(sums_2N, group).sum(dim=0), divergence)
        else:
            value_N, saved_5N = finish(stats_5N, divergence)
        ctx.save_for_backward(student_ND, student_VD, teacher_NE, teacher_VE, saved_5N)
        ctx.settings = real_rows, divergence, student, teacher
        return value_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_N):
        student_ND, student_VD, teacher_NE, teacher_VE, saved_5N = ctx.saved_tensors
        real_rows, divergence, student, teacher = ctx.settings
        heads = (student_ND, student_VD, student), (teacher_NE, teacher_VE, teacher)
        num_rows = student_ND.shape[0]
        tile = tile_of(student_ND.dtype)
        gradients = Gradients(student_ND, student_VD, *ctx.needs_input_grad[:2], saved_5N.dtype)
        chunk = chunk_columns(num_rows, real_rows, student_ND.element_size(), tile)
        beta = divergence.beta if divergence.kind == "jsd" else 0.5
        slope_NC = torch.empty(num_rows, chunk, dtype=student_ND.dtype, device=student_ND.device)
        grad_N = (grad_N / student.temperature).contiguous()
        for first in range(0, real_rows, chunk):
            columns = slice(first, min(first + chunk, real_rows))
            _slope_kernel[(triton.cdiv(num_rows, tile.rows), triton.cdiv(columns.stop - first, tile.columns))](
                *_operands(*heads[0]),
                *_operands(*heads[1]),
                saved_5N,
                grad_N,
                slope_NC,
                num_rows,
                real_rows,
                first,
                chunk,
                math.log(beta),
                math.log1p(-beta),
                1.0 - beta,
                KIND=divergence.kind,
                **_meta(tile, *heads),
            )
            gradients.add(slice(0, num_rows), columns, slope_NC[:, : columns.stop - first])
        return *gradients.finished(), None, None, None, None, None, None, None


def _splits(num_rows: int, real_rows: int, tile: Tile) -> tuple[int, int]:
    """(splits of the vocabulary, columns of each): enough programs for the device, each with whole column tiles."""
    column_tiles = triton.cdiv(real_rows, tile.columns)
    if column_tiles == 0:
        return 0, 0
    wanted = min(column_tiles, triton.cdiv(PROGRAMS, max(1, triton.cdiv(num_rows, tile.rows))))
    columns = triton.cdiv(column_tiles, wanted) * tile.columns
    return triton.cdiv(real_rows, columns), columns


def _operands(hidden, weight, scaling: Scaling):
    return hidden, weight, hidden.shape[1], 1.0 / scaling.temperature, scaling.softcap


def _meta(tile: Tile, first, second):
    return {
        "FIRST_EVEN": first[0].shape[1] % tile.depth == 0,
        "SECOND_EVEN": second[0].shape[1] % tile.depth == 0,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "DEPTH": tile.depth,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }
