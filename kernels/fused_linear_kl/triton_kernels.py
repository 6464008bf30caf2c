"""The kernels of triton.py: two logit tiles, one per head, made in registers and reduced or differentiated at once.

Arguments named lead and other (or student and teacher) come in fives: hidden states [N, width], head [V, width], width,
1 / temperature, soft cap or None. All are contiguous. Shape suffixes as in triton.py.
"""

import triton
import triton.language as tl

from osim_kernels.fused_linear_kl.divergence import LOWEST

_LOWEST = tl.constexpr(LOWEST)


@triton.jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def _logits(
    hidden,
    weight,
    width,
    inverse_temperature,
    softcap,
    row_R,
    column_C,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """[R, C] fp32, capped and scaled. Rows and columns have to exist: callers clamp them and discard what is extra."""
    depth_K = tl.arange(0, DEPTH)
    hidden_RK = hidden + row_R.to(tl.int64)[:, None] * width + depth_K[None, :]
    weight_KC = weight + column_C.to(tl.int64)[None, :] * width + depth_K[:, None]
    logits_RC = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, width, DEPTH):
        if EVEN:
            left_RK, right_KC = tl.load(hidden_RK), tl.load(weight_KC)
        else:
            left_RK = tl.load(hidden_RK, mask=(first + depth_K < width)[None, :], other=0.0)
            right_KC = tl.load(weight_KC, mask=(first + depth_K < width)[:, None], other=0.0)
        logits_RC = tl.dot(left_RK, right_KC, logits_RC, input_precision="ieee")
        hidden_RK += DEPTH
        weight_KC += DEPTH
    if softcap is not None:
        logits_RC = softcap * _tanh(logits_RC / softcap)
    return logits_RC * inverse_temperature


@triton.jit
def _log_mixture(log_p_RC, log_q_RC, log_beta, log_rest):
    left_RC, right_RC = log_p_RC + log_beta, log_q_RC + log_rest
    top_RC = tl.maximum(left_RC, right_RC)
    return top_RC + tl.log(tl.exp(left_RC - top_RC) + tl.exp(right_RC - top_RC))


@triton.jit(do_not_specialize=["num_rows", "columns_per_split"])
def _statistics_kernel(
    lead_hidden,
    lead_weight,
    lead_width,
    lead_inverse_temperature,
    lead_softcap,
    other_hidden,
    other_weight,
    other_width,
    other_inverse_temperature,
    other_softcap,
    parts,
    num_rows,
    real_rows,
    columns_per_split,
    FIRST_EVEN: tl.constexpr,
    SECOND_EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """parts[split] = the five statistics of divergence.py over one split's columns."""
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    kept_R = row_R < num_rows
    row_R = tl.minimum(row_R, num_rows - 1)
    split = tl.program_id(1)
    start = split * columns_per_split
    stop = tl.minimum(start + columns_per_split, real_rows)
    lead_R = tl.full([ROWS], _LOWEST, tl.float32)
    other_R = tl.full([ROWS], _LOWEST, tl.float32)
    lead_sum_R = tl.zeros([ROWS], tl.float32)
    other_sum_R = tl.zeros([ROWS], tl.float32)
    moment_R = tl.zeros([ROWS], tl.float32)
    for first in range(start, stop, COLUMNS):
        column_C = first + tl.arange(0, COLUMNS)
        real_C = (column_C < stop)[None, :]
        column_C = tl.minimum(column_C, real_rows - 1)
        lead_RC = _logits(
            lead_hidden, lead_weight, lead_width, lead_inverse_temperature, lead_softcap,
            row_R, column_C, FIRST_EVEN, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        other_RC = _logits(
            other_hidden, other_weight, other_width, other_inverse_temperature, other_softcap,
            row_R, column_C, SECOND_EVEN, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        lead_RC = tl.where(real_C, lead_RC, _LOWEST)
        other_RC = tl.where(real_C, other_RC, _LOWEST)
        new_lead_R = tl.maximum(lead_R, tl.max(lead_RC, axis=1))
        new_other_R = tl.maximum(other_R, tl.max(other_RC, axis=1))
        lead_shift_R, other_shift_R = lead_R - new_lead_R, other_R - new_other_R
        lead_RC -= new_lead_R[:, None]
        other_RC -= new_other_R[:, None]
        weight_RC = tl.exp(lead_RC)
        lead_decay_R = tl.exp(lead_shift_R)
        moment_R = lead_decay_R * (moment_R + lead_sum_R * (lead_shift_R - other_shift_R))
        moment_R += tl.sum(weight_RC * (lead_RC - other_RC), axis=1)
        lead_sum_R = lead_decay_R * lead_sum_R + tl.sum(weight_RC, axis=1)
        other_sum_R = tl.exp(other_shift_R) * other_sum_R + tl.sum(tl.exp(other_RC), axis=1)
        lead_R, other_R = new_lead_R, new_other_R
    part = parts + split.to(tl.int64) * 5 * num_rows + row_R
    tl.store(part, lead_R, mask=kept_R)
    tl.store(part + num_rows, lead_sum_R, mask=kept_R)
    tl.store(part + 2 * num_rows, other_R, mask=kept_R)
    tl.store(part + 3 * num_rows, other_sum_R, mask=kept_R)
    tl.store(part + 4 * num_rows, moment_R, mask=kept_R)


@triton.jit
def _log_probs(
    student_hidden,
    student_weight,
    student_width,
    student_inverse_temperature,
    student_softcap,
    teacher_hidden,
    teacher_weight,
    teacher_width,
    teacher_inverse_temperature,
    teacher_softcap,
    norms,
    num_rows,
    row_R,
    column_C,
    FIRST_EVEN: tl.constexpr,
    SECOND_EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """(log q, log p, the student's logits) of one tile; two subtractions keep the log-sum where logits are large."""
    logits_RC = _logits(
        student_hidden, student_weight, student_width, student_inverse_temperature, student_softcap,
        row_R, column_C, FIRST_EVEN, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    teacher_RC = _logits(
        teacher_hidden, teacher_weight, teacher_width, teacher_inverse_temperature, teacher_softcap,
        row_R, column_C, SECOND_EVEN, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    log_q_RC = (logits_RC - tl.load(norms + row_R)[:, None]) - tl.load(norms + num_rows + row_R)[:, None]
    log_p_RC = teacher_RC - tl.load(norms + 2 * num_rows + row_R)[:, None]
    log_p_RC -= tl.load(norms + 3 * num_rows + row_R)[:, None]
    return log_q_RC, log_p_RC, logits_RC


@triton.jit(do_not_specialize=["num_rows", "columns_per_split"])
def _mixture_kernel(
    student_hidden,
    student_weight,
    student_width,
    student_inverse_temperature,
    student_softcap,
    teacher_hidden,
    teacher_weight,
    teacher_width,
    teacher_inverse_temperature,
    teacher_softcap,
    norms,
    parts,
    num_rows,
    real_rows,
    columns_per_split,
    log_beta,
    log_rest,
    FIRST_EVEN: tl.constexpr,
    SECOND_EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """parts[split] = (sum of p (log p - log m), sum of q (log q - log m)) over one split's columns."""
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    kept_R = row_R < num_rows
    row_R = tl.minimum(row_R, num_rows - 1)
    split = tl.program_id(1)
    start = split * columns_per_split
    stop = tl.minimum(start + columns_per_split, real_rows)
    teacher_R = tl.zeros([ROWS], tl.float32)
    student_R = tl.zeros([ROWS], tl.float32)
    for first in range(start, stop, COLUMNS):
        column_C = first + tl.arange(0, COLUMNS)
        real_C = (column_C < stop)[None, :]
        log_q_RC, log_p_RC, _ = _log_probs(
            student_hidden, student_weight, student_width, student_inverse_temperature, student_softcap,
            teacher_hidden, teacher_weight, teacher_width, teacher_inverse_temperature, teacher_softcap,
            norms, num_rows, row_R, tl.minimum(column_C, real_rows - 1), FIRST_EVEN, SECOND_EVEN, ROWS, COLUMNS, DEPTH
        )  # fmt: skip
        log_m_RC = _log_mixture(log_p_RC, log_q_RC, log_beta, log_rest)
        teacher_R += tl.sum(tl.where(real_C, tl.exp(log_p_RC) * (log_p_RC - log_m_RC), 0.0), axis=1)
        student_R += tl.sum(tl.where(real_C, tl.exp(log_q_RC) * (log_q_RC - log_m_RC), 0.0), axis=1)
    part = parts + split.to(tl.int64) * 2 * num_rows + row_R
    tl.store(part, teacher_R, mask=kept_R)
    tl.store(part + num_rows, student_R, mask=kept_R)


@triton.jit(do_not_specialize=["num_rows", "first_column"])
def _slope_kernel(
    student_hidden,
    student_weight,
    student_width,
    student_inverse_temperature,
    student_softcap,
    teacher_hidden,
    teacher_weight,
    teacher_width,
    teacher_inverse_temperature,
    teacher_softcap,
    saved,
    grad,
    slope,
    num_rows,
    real_rows,
    first_column,
    slope_stride,
    log_beta,
    log_rest,
    rest,
    KIND: tl.constexpr,
    FIRST_EVEN: tl.constexpr,
    SECOND_EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """slope[row, column - first_column] = gradient of the student's product at one tile, in the operands' dtype."""
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    kept_R = row_R < num_rows
    row_R = tl.minimum(row_R, num_rows - 1)
    place_C = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    column_C = tl.minimum(first_column + place_C, real_rows - 1)
    log_q_RC, log_p_RC, logits_RC = _log_probs(
        student_hidden, student_weight, student_width, student_inverse_temperature, student_softcap,
        teacher_hidden, teacher_weight, teacher_width, teacher_inverse_temperature, teacher_softcap,
        saved, num_rows, row_R, column_C, FIRST_EVEN, SECOND_EVEN, ROWS, COLUMNS, DEPTH
    )  # fmt: skip
    if KIND == "forward":
        slope_RC = tl.exp(log_q_RC) - tl.exp(log_p_RC)
    else:
        extra_R = tl.load(saved + 4 * num_rows + row_R)
        if KIND == "reverse":
            slope_RC = tl.exp(log_q_RC) * (log_q_RC - log_p_RC - extra_R[:, None])
        else:
            log_m_RC = _log_mixture(log_p_RC, log_q_RC, log_beta, log_rest)
            slope_RC = rest * tl.exp(log_q_RC) * (log_q_RC - log_m_RC - extra_R[:, None])
    slope_RC *= tl.load(grad + row_R)[:, None]
    if student_softcap is not None:  # the logits are cap tanh(x / cap) / temperature
        tanh_RC = logits_RC / (student_softcap * student_inverse_temperature)
        slope_RC *= 1.0 - tanh_RC * tanh_RC
    # the workspace is whole tiles wide, so only rows need a mask and stores stay 128 bits wide
    target_RC = slope + row_R.to(tl.int64)[:, None] * slope_stride + place_C[None, :]
    tl.store(target_RC, slope_RC.to(slope.dtype.element_ty), mask=kept_R[:, None])
