"""Triton for Hopper: both heads' logit tiles side by side in registers; nothing of size V reaches memory.

Forward and reverse KL take one pass over the vocabulary, Jensen-Shannon two (its mixture needs both normalisers).
Programs are row tiles x parts of the vocabulary; parts, like ranks, are joined by `merge` in a fixed order. Backward
recomputes a chunk of logits, writes their gradient into a workspace of bounded size and leaves the two products to
cuBLAS. No atomics: equal inputs give equal bits.

Shape suffixes: N tokens of non-zero weight, D and E hidden sizes of student and teacher, V this rank's vocabulary rows,
P parts of the vocabulary, R x C one chunk.
"""

import math

import torch
import triton

from osim_kernels.fused_linear_kl.chunked import Gradients, finish, finish_mixture, normalisers, over_ranks
from osim_kernels.fused_linear_kl.divergence import Divergence, Scaling, merge, no_statistics
from osim_kernels.fused_linear_kl.triton_kernels import _dlogits_kernel, _mixture_kernel, _statistics_kernel
from osim_kernels.fused_linear_logprob.products import spans
from osim_kernels.fused_linear_logprob.tile import row_descriptor
from osim_kernels.fused_linear_logprob.triton import Config, chunk_shape

PROGRAMS = 528  # forward programs aimed at: four rounds of 132 SMs

# By element size and whether more than the two logit tiles has to stay in registers: with the mixture of the second
# Jensen-Shannon pass, or a soft cap's slope, 128 x 128 spills. Chosen by the compile audit, not by timing, and fixed:
# a configuration picked by timing could differ after a resume and change bits.
CONFIGS = {
    (2, False): Config(128, 128, 64, 8, 3),
    (2, True): Config(128, 64, 64, 8, 4),
    (4, False): Config(64, 64, 16, 8, 3),
    (4, True): Config(64, 64, 16, 8, 3),
}
# What `python -m benchmarks kernels fused_linear_kl --tune` times on a GPU, by the same key.
CANDIDATES = {
    (2, False): [Config(128, 128, 64, 8, 3), Config(128, 128, 64, 8, 4), Config(128, 64, 64, 8, 4)],
    (2, True): [Config(128, 64, 64, 8, 3), Config(128, 64, 64, 8, 4), Config(64, 128, 64, 8, 4)],
    (4, False): [Config(64, 64, 16, 8, 3), Config(64, 64, 16, 8, 2)],
    (4, True): [Config(64, 64, 16, 8, 3), Config(32, 64, 16, 4, 3)],
}


def fused_linear_kl_triton(
    student_ND, student_VD, teacher_NE, teacher_VE, *, real_rows, group, divergence, student, teacher
):
    operands = (x.contiguous() for x in (student_ND, student_VD, teacher_NE, teacher_VE))
    return _FusedLinearKL.apply(*operands, real_rows, group, divergence, student, teacher)


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
        heads = (student_ND, student_VD[:real_rows], student), (teacher_NE, teacher_VE[:real_rows], teacher)
        stats_5N = merge(over_ranks(local_statistics(*(heads if divergence.student_leads else heads[::-1])), group))
        if divergence.kind == "jsd":
            norms_4N = normalisers(stats_5N, divergence)
            sums_2N = over_ranks(local_mixture(*heads, norms_4N, divergence.beta), group).sum(dim=0)
            value_N, saved_5N = finish_mixture(norms_4N, sums_2N, divergence)
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
        gradients = Gradients(student_ND, student_VD, *ctx.needs_input_grad[:2], saved_5N.dtype)
        chunk_rows, chunk_columns = chunk_shape(student_ND.shape[0], real_rows, student_ND.dtype)
        workspace_RC = student_ND.new_empty(chunk_rows, chunk_columns)
        grad_N = grad_N.contiguous()
        for columns in spans(real_rows, chunk_columns):
            for rows in spans(student_ND.shape[0], chunk_rows):
                dlogits_RC = workspace_RC[: rows.stop - rows.start, : columns.stop - columns.start]
                launch_dlogits(
                    dlogits_RC,
                    (student_ND[rows], student_VD[columns], student),
                    (teacher_NE[rows], teacher_VE[columns], teacher),
                    [*saved_5N[:, rows], grad_N[rows]],
                    divergence,
                )
                gradients.add(rows, columns, dlogits_RC)
        return *gradients.finished(), None, None, None, None, None, None, None


def local_statistics(lead, other) -> torch.Tensor:
    """[5, N] fp32 of this rank's rows of the heads (divergence.py); lead, other: (hidden, head, Scaling)."""
    num_rows, num_columns = lead[0].shape[0], lead[1].shape[0]
    if num_rows == 0 or num_columns == 0:
        return no_statistics(num_rows, lead[0])
    config = CONFIGS[lead[0].element_size(), False]
    parts, blocks_per_part = parts_of(num_rows, num_columns, config)
    parts_P5N = lead[0].new_empty(parts, 5, num_rows, dtype=torch.float32)
    _statistics_kernel[(triton.cdiv(num_rows, config.tokens) * parts,)](
        *head_arguments(*lead, config),
        *head_arguments(*other, config),
        parts_P5N,
        num_rows,
        num_columns,
        parts,
        blocks_per_part,
        **static_arguments(config, lead[0].dtype),
    )
    return merge(parts_P5N)


def local_mixture(student, teacher, norms_4N, beta: float) -> torch.Tensor:
    """[2, N]: this rank's share of KL(P || M) and KL(Q || M)."""
    num_rows, num_columns = student[0].shape[0], student[1].shape[0]
    if num_rows == 0 or num_columns == 0:
        return torch.zeros_like(norms_4N[:2])
    config = CONFIGS[student[0].element_size(), True]
    parts, blocks_per_part = parts_of(num_rows, num_columns, config)
    parts_P2N = student[0].new_empty(parts, 2, num_rows, dtype=torch.float32)
    _mixture_kernel[(triton.cdiv(num_rows, config.tokens) * parts,)](
        *head_arguments(*student, config),
        *head_arguments(*teacher, config),
        *norms_4N,
        parts_P2N,
        num_rows,
        num_columns,
        parts,
        blocks_per_part,
        math.log(beta),
        math.log1p(-beta),
        **static_arguments(config, student[0].dtype),
    )
    return parts_P2N.sum(dim=0)


def launch_dlogits(dlogits_RC, student, teacher, rows, divergence: Divergence) -> None:
    """Fill dlogits_RC with the gradient of student hidden @ head.T; `rows` are the student's maximum and log-sum, the
    teacher's, what the divergence adds (see `logit_slope`), and the gradient flowing in, [R] each."""
    num_rows, num_columns = dlogits_RC.shape
    capped = student[2].softcap is not None or teacher[2].softcap is not None
    config = CONFIGS[dlogits_RC.element_size(), capped]
    row_tiles, column_tiles = triton.cdiv(num_rows, config.tokens), triton.cdiv(num_columns, config.columns)
    beta = divergence.beta if divergence.kind == "jsd" else 0.5
    _dlogits_kernel[(row_tiles * column_tiles,)](
        *head_arguments(*student, config),
        *head_arguments(*teacher, config),
        *rows,
        row_descriptor(dlogits_RC, config.tokens, config.columns),
        num_rows,
        column_tiles,
        math.log(beta),
        math.log1p(-beta),
        1.0 - beta,
        KIND=divergence.kind,
        **static_arguments(config, dlogits_RC.dtype),
    )


def head_arguments(hidden, weight, scaling: Scaling, config: Config):
    """A head's five kernel arguments."""
    return (
        row_descriptor(hidden, config.tokens, config.depth),
        row_descriptor(weight, config.columns, config.depth),
        hidden.shape[1],
        1.0 / scaling.temperature,
        scaling.softcap,
    )


def static_arguments(config: Config, dtype: torch.dtype) -> dict:
    return {
        "BLOCK_N": config.tokens,
        "BLOCK_C": config.columns,
        "BLOCK_D": config.depth,
        "PRECISION": "ieee" if dtype == torch.float32 else None,  # 16-bit operands have only one precision
        "num_warps": config.warps,
        "num_stages": config.stages,
    }


def parts_of(num_rows: int, num_columns: int, config: Config) -> tuple[int, int]:
    """(parts of the vocabulary, column blocks in each): enough programs to fill the device."""
    blocks = triton.cdiv(num_columns, config.columns)
    wanted = triton.cdiv(PROGRAMS, triton.cdiv(num_rows, config.tokens))
    blocks_per_part = triton.cdiv(blocks, min(wanted, blocks))
    return triton.cdiv(blocks, blocks_per_part), blocks_per_part
