"""The kernels of triton.py: two logit tiles, one per head, made in registers and reduced or differentiated at once.

A head comes as five arguments: descriptors of its hidden states and its weight, hidden size, 1 / temperature, soft cap
(None without one). Kernels that lead with the distribution they weight by call the heads lead and other, the rest
student and teacher. Shape suffixes: N tokens, C vocabulary columns of one tile.
"""

import triton
import triton.language as tl

from osim_kernels.fused_linear_kl.divergence import LOWEST
from osim_kernels.fused_linear_logprob.tile import grouped, logit_tile, scaled

LOWEST_LOGIT = tl.constexpr(LOWEST)
# rows of one [5, N] tensor: whether they are aligned follows N, and must not compile a kernel anew
NORMS = ["student_maximum_ptr", "student_log_sum_ptr", "teacher_maximum_ptr", "teacher_log_sum_ptr"]
GROUP = tl.constexpr(16)  # row tiles that share their columns while these are in L2


@triton.jit
def _logits(
    hidden, head, hidden_size, inverse_temperature, softcap, row, column,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    logits_NC = logit_tile(hidden, head, row, column, hidden_size, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION)
    return scaled(logits_NC, inverse_temperature, softcap, softcap is not None)


@triton.jit
def _log_mixture(log_p_NC, log_q_NC, log_beta, log_rest):
    left_NC, right_NC = log_p_NC + log_beta, log_q_NC + log_rest
    top_NC = tl.maximum(left_NC, right_NC)
    return top_NC + tl.log(tl.exp(left_NC - top_NC) + tl.exp(right_NC - top_NC))


@triton.jit(do_not_specialize=["num_rows", "num_parts", "blocks_per_part"])
def _statistics_kernel(
    lead_hidden, lead_head, lead_size, lead_inverse_temperature, lead_softcap,
    other_hidden, other_head, other_size, other_inverse_temperature, other_softcap,
    parts_ptr, num_rows, num_columns, num_parts, blocks_per_part,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """parts[part] = the five statistics of divergence.py over one part's columns."""
    tile, part = grouped(tl.program_id(0), tl.cdiv(num_rows, BLOCK_N), num_parts, GROUP)
    lead_N = tl.full((BLOCK_N,), LOWEST_LOGIT, tl.float32)
    other_N = tl.full((BLOCK_N,), LOWEST_LOGIT, tl.float32)
    lead_sum_N = tl.zeros((BLOCK_N,), tl.float32)
    other_sum_N = tl.zeros((BLOCK_N,), tl.float32)
    moment_N = tl.zeros((BLOCK_N,), tl.float32)
    last = min((part + 1) * blocks_per_part, tl.cdiv(num_columns, BLOCK_C))
    for block in range(part * blocks_per_part, last):
        row, column = tile * BLOCK_N, block * BLOCK_C
        lead_NC = _logits(
            lead_hidden, lead_head, lead_size, lead_inverse_temperature, lead_softcap,
            row, column, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION,
        )  # fmt: skip
        other_NC = _logits(
            other_hidden, other_head, other_size, other_inverse_temperature, other_softcap,
            row, column, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION,
        )  # fmt: skip
        real_C = (column + tl.arange(0, BLOCK_C) < num_columns)[None, :]
        lead_NC = tl.where(real_C, lead_NC, LOWEST_LOGIT)
        other_NC = tl.where(real_C, other_NC, LOWEST_LOGIT)
        lead_after_N = tl.maximum(lead_N, tl.max(lead_NC, axis=1))
        other_after_N = tl.maximum(other_N, tl.max(other_NC, axis=1))
        lead_shift_N, other_shift_N = lead_N - lead_after_N, other_N - other_after_N
        lead_NC -= lead_after_N[:, None]
        other_NC -= other_after_N[:, None]
        weight_NC = tl.exp(lead_NC)
        decay_N = tl.exp(lead_shift_N)
        moment_N = decay_N * (moment_N + lead_sum_N * (lead_shift_N - other_shift_N))
        moment_N += tl.sum(weight_NC * (lead_NC - other_NC), axis=1)
        lead_sum_N = decay_N * lead_sum_N + tl.sum(weight_NC, axis=1)
        other_sum_N = tl.exp(other_shift_N) * other_sum_N + tl.sum(tl.exp(other_NC), axis=1)
        lead_N, other_N = lead_after_N, other_after_N
    row_N = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_N = row_N < num_rows
    out_N = parts_ptr + part.to(tl.int64) * 5 * num_rows + row_N
    tl.store(out_N, lead_N, mask=inside_N)
    tl.store(out_N + num_rows, lead_sum_N, mask=inside_N)
    tl.store(out_N + 2 * num_rows, other_N, mask=inside_N)
    tl.store(out_N + 3 * num_rows, other_sum_N, mask=inside_N)
    tl.store(out_N + 4 * num_rows, moment_N, mask=inside_N)


@triton.jit
def _norms(student_maximum_ptr, student_log_sum_ptr, teacher_maximum_ptr, teacher_log_sum_ptr, row_N, inside_N):
    return (
        tl.load(student_maximum_ptr + row_N, mask=inside_N, other=0.0)[:, None],
        tl.load(student_log_sum_ptr + row_N, mask=inside_N, other=0.0)[:, None],
        tl.load(teacher_maximum_ptr + row_N, mask=inside_N, other=0.0)[:, None],
        tl.load(teacher_log_sum_ptr + row_N, mask=inside_N, other=0.0)[:, None],
    )


@triton.jit(do_not_specialize=["num_rows", "num_parts", "blocks_per_part"], do_not_specialize_on_alignment=NORMS)
def _mixture_kernel(
    student_hidden, student_head, student_size, student_inverse_temperature, student_softcap,
    teacher_hidden, teacher_head, teacher_size, teacher_inverse_temperature, teacher_softcap,
    student_maximum_ptr, student_log_sum_ptr, teacher_maximum_ptr, teacher_log_sum_ptr,
    parts_ptr, num_rows, num_columns, num_parts, blocks_per_part, log_beta, log_rest,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """parts[part] = (sum of p (log p - log m), sum of q (log q - log m)) over one part's columns."""
    tile, part = grouped(tl.program_id(0), tl.cdiv(num_rows, BLOCK_N), num_parts, GROUP)
    row_N = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_N = row_N < num_rows
    student_maximum_N1, student_log_sum_N1, teacher_maximum_N1, teacher_log_sum_N1 = _norms(
        student_maximum_ptr, student_log_sum_ptr, teacher_maximum_ptr, teacher_log_sum_ptr, row_N, inside_N
    )
    teacher_N = tl.zeros((BLOCK_N,), tl.float32)
    student_N = tl.zeros((BLOCK_N,), tl.float32)
    last = min((part + 1) * blocks_per_part, tl.cdiv(num_columns, BLOCK_C))
    for block in range(part * blocks_per_part, last):
        row, column = tile * BLOCK_N, block * BLOCK_C
        log_q_NC = _logits(
            student_hidden, student_head, student_size, student_inverse_temperature, student_softcap,
            row, column, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION,
        )  # fmt: skip
        log_p_NC = _logits(
            teacher_hidden, teacher_head, teacher_size, teacher_inverse_temperature, teacher_softcap,
            row, column, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION,
        )  # fmt: skip
        # two subtractions: maximum + log-sum would lose the log-sum where logits are large
        log_q_NC = log_q_NC - student_maximum_N1 - student_log_sum_N1
        log_p_NC = log_p_NC - teacher_maximum_N1 - teacher_log_sum_N1
        log_m_NC = _log_mixture(log_p_NC, log_q_NC, log_beta, log_rest)
        real_C = (column + tl.arange(0, BLOCK_C) < num_columns)[None, :]
        teacher_N += tl.sum(tl.where(real_C, tl.exp(log_p_NC) * (log_p_NC - log_m_NC), 0.0), axis=1)
        student_N += tl.sum(tl.where(real_C, tl.exp(log_q_NC) * (log_q_NC - log_m_NC), 0.0), axis=1)
    out_N = parts_ptr + part.to(tl.int64) * 2 * num_rows + row_N
    tl.store(out_N, teacher_N, mask=inside_N)
    tl.store(out_N + num_rows, student_N, mask=inside_N)


@triton.jit(
    do_not_specialize=["num_rows", "num_column_tiles"],
    do_not_specialize_on_alignment=[*NORMS, "extra_ptr", "grad_ptr"],
)
def _dlogits_kernel(
    student_hidden, student_head, student_size, student_inverse_temperature, student_softcap,
    teacher_hidden, teacher_head, teacher_size, teacher_inverse_temperature, teacher_softcap,
    student_maximum_ptr, student_log_sum_ptr, teacher_maximum_ptr, teacher_log_sum_ptr, extra_ptr, grad_ptr,
    dlogits, num_rows, num_column_tiles, log_beta, log_rest, rest,
    KIND: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of one tile of the student's products hidden @ head.T, in the operands' dtype."""
    tile, part = grouped(tl.program_id(0), tl.cdiv(num_rows, BLOCK_N), num_column_tiles, GROUP)
    row, column = tile * BLOCK_N, part * BLOCK_C
    logits_NC = _logits(
        student_hidden, student_head, student_size, student_inverse_temperature, student_softcap,
        row, column, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION,
    )  # fmt: skip
    teacher_NC = _logits(
        teacher_hidden, teacher_head, teacher_size, teacher_inverse_temperature, teacher_softcap,
        row, column, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION,
    )  # fmt: skip
    row_N = row + tl.arange(0, BLOCK_N)
    inside_N = row_N < num_rows
    student_maximum_N1, student_log_sum_N1, teacher_maximum_N1, teacher_log_sum_N1 = _norms(
        student_maximum_ptr, student_log_sum_ptr, teacher_maximum_ptr, teacher_log_sum_ptr, row_N, inside_N
    )
    log_q_NC = logits_NC - student_maximum_N1 - student_log_sum_N1
    log_p_NC = teacher_NC - teacher_maximum_N1 - teacher_log_sum_N1
    grad_N1 = tl.load(grad_ptr + row_N, mask=inside_N, other=0.0)[:, None] * student_inverse_temperature
    if KIND == "forward":
        slope_NC = grad_N1 * (tl.exp(log_q_NC) - tl.exp(log_p_NC))
    else:
        extra_N1 = tl.load(extra_ptr + row_N, mask=inside_N, other=0.0)[:, None]
        if KIND == "reverse":
            slope_NC = grad_N1 * tl.exp(log_q_NC) * (log_q_NC - log_p_NC - extra_N1)
        else:
            log_m_NC = _log_mixture(log_p_NC, log_q_NC, log_beta, log_rest)
            slope_NC = rest * grad_N1 * tl.exp(log_q_NC) * (log_q_NC - log_m_NC - extra_N1)
    if student_softcap is not None:  # logits are cap tanh(x / cap) / temperature
        tanh_NC = logits_NC / (student_softcap * student_inverse_temperature)
        slope_NC *= 1.0 - tanh_NC * tanh_NC
    dlogits.store([row, column], slope_NC.to(dlogits.dtype))
