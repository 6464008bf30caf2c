"""Triton for Hopper: log-probs of K given ids and of everything else together, with logit tiles in registers.

Forward: every program walks the vocabulary blocks of one part for one tile of tokens. A row's ids come sorted, so a
cursor finds the few that lie in a block: each is picked, struck out, and the rest of the block joins the tail's sum.
Backward: a kernel writes the gradient of a chunk of logits as if all lay in the tail, a second one puts the ids'
entries in their places (each has one, so no atomics), and cuBLAS makes the two products. Equal inputs give equal bits.

Shape suffixes: N tokens of non-zero weight, D hidden, V this rank's vocabulary rows, K ids, L = K + 1 buckets, P parts
of the vocabulary, R x C one chunk or tile.
"""

import torch
import triton
import triton.language as tl

from osim_kernels.fused_linear_kl.chunked import Gradients, softcap_slope
from osim_kernels.fused_linear_kl.divergence import LOWEST, Scaling
from osim_kernels.fused_linear_kl.top_k import bucket_slopes, joined, normalised
from osim_kernels.fused_linear_kl.triton import head_arguments, parts_of, static_arguments
from osim_kernels.fused_linear_kl.triton_kernels import GROUP, LOWEST_LOGIT, _logits
from osim_kernels.fused_linear_logprob.products import spans
from osim_kernels.fused_linear_logprob.tile import grouped, row_descriptor
from osim_kernels.fused_linear_logprob.triton import Config, chunk_shape

# By element size, and in backward by soft cap, whose slope stays in registers as well. Chosen by the compile audit, not
# by timing, and fixed: a configuration picked by timing could differ after a resume and change bits.
FORWARD = {2: Config(256, 128, 64, 8, 4), 4: Config(64, 64, 16, 4, 3)}  # 128 x 256 spills: more columns a thread
BACKWARD = {
    (2, False): Config(128, 256, 64, 8, 4),
    (2, True): Config(128, 128, 64, 8, 4),
    (4, False): Config(64, 64, 16, 4, 3),
    (4, True): Config(64, 64, 16, 4, 3),
}
SEARCH = tl.constexpr(32)  # ids a row looks at together, to find its first in a part
PLACE_BLOCK = 1024


def bucket_logprobs_triton(hidden_ND, weight_VD, ids_NK, *, real_rows, group, student: Scaling):
    # beyond either end of the shard no id is looked for, and any then fits 32 bits
    local_NK = ids_NK.clamp(-1, real_rows).to(torch.int32).contiguous()
    return _BucketLogprobs.apply(hidden_ND.contiguous(), weight_VD, local_NK, real_rows, group, student)


class _BucketLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, ids_NK, real_rows, group, student):
        picked_NK, tail_2N = local_buckets(hidden_ND, weight_VD[:real_rows], ids_NK, student)
        logprobs_NL, top_N, log_sum_N = normalised(picked_NK, tail_2N, group)
        ctx.save_for_backward(hidden_ND, weight_VD, ids_NK, top_N, log_sum_N, logprobs_NL)
        ctx.settings = real_rows, student
        return logprobs_NL

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_NL):
        hidden_ND, weight_VD, ids_NK, top_N, log_sum_N, logprobs_NL = ctx.saved_tensors
        real_rows, student = ctx.settings
        gradients = Gradients(hidden_ND, weight_VD, *ctx.needs_input_grad[:2], log_sum_N.dtype)
        ids_grad_NK, tail_grad_N1, all_N1 = bucket_slopes(grad_NL, logprobs_NL, student.temperature)
        if student.softcap is not None:
            picked_NK = logprobs_NL[:, :-1] + log_sum_N[:, None] + top_N[:, None]
            ids_grad_NK = ids_grad_NK * softcap_slope(picked_NK, student)
        ids_grad_NK = ids_grad_NK.contiguous()  # the gradient may come in any layout
        tail_N = logprobs_NL[:, -1].clamp(min=LOWEST)
        rows_5N = torch.stack((top_N, log_sum_N, tail_N, tail_grad_N1[:, 0], all_N1[:, 0]))
        chunk_rows, chunk_columns = chunk_shape(hidden_ND.shape[0], real_rows, hidden_ND.dtype)
        workspace_RC = hidden_ND.new_empty(chunk_rows, chunk_columns)
        for columns in spans(real_rows, chunk_columns):
            for rows in spans(hidden_ND.shape[0], chunk_rows):
                dlogits_RC = workspace_RC[: rows.stop - rows.start, : columns.stop - columns.start]
                launch_dlogits(dlogits_RC, hidden_ND[rows], weight_VD[columns], rows_5N[:, rows], student)
                launch_place(dlogits_RC, ids_NK[rows], ids_grad_NK[rows], columns.start)
                gradients.add(rows, columns, dlogits_RC)
        return *gradients.finished(), None, None, None, None


def local_buckets(hidden_ND, head_VD, ids_NK, student: Scaling):
    """(logits of the ids [N, K], -inf where this rank's head lacks them; maximum and sum of exp(z - maximum) of all
    other columns [2, N]), in fp32."""
    num_rows, num_columns = hidden_ND.shape[0], head_VD.shape[0]
    # one more bucket a row: where a cursor comes to rest
    sorted_NL, order_NL = torch.nn.functional.pad(ids_NK, (0, 1), value=num_columns).sort(dim=1)
    picked_NL = torch.full(sorted_NL.shape, -torch.inf, device=ids_NK.device)
    if num_rows == 0 or num_columns == 0:
        tail_2N = picked_NL.new_zeros(2, num_rows)
        tail_2N[0] = LOWEST
        return picked_NL[:, :-1], tail_2N
    config = FORWARD[hidden_ND.element_size()]
    parts, blocks_per_part = parts_of(num_rows, num_columns, config)
    parts_P2N = picked_NL.new_empty(parts, 2, num_rows)
    _buckets_kernel[(triton.cdiv(num_rows, config.tokens) * parts,)](
        *head_arguments(hidden_ND, head_VD, student, config),
        sorted_NL,
        picked_NL,
        parts_P2N,
        sorted_NL.shape[1],
        num_rows,
        num_columns,
        parts,
        blocks_per_part,
        **static_arguments(config, hidden_ND.dtype),
    )
    return torch.empty_like(picked_NL).scatter_(1, order_NL, picked_NL)[:, :-1], joined(parts_P2N)


def launch_dlogits(dlogits_RC, hidden_RD, head_CD, rows_5R, student: Scaling) -> None:
    """Fill dlogits_RC with the gradient of hidden @ head.T where no column is an id; rows_5R: top logit, log-sum,
    log-prob of the tail, and the tail's and all buckets' gradient (see `bucket_slopes`)."""
    num_rows, num_columns = dlogits_RC.shape
    config = BACKWARD[dlogits_RC.element_size(), student.softcap is not None]
    row_tiles, column_tiles = triton.cdiv(num_rows, config.tokens), triton.cdiv(num_columns, config.columns)
    _tail_dlogits_kernel[(row_tiles * column_tiles,)](
        *head_arguments(hidden_RD, head_CD, student, config),
        *rows_5R,
        row_descriptor(dlogits_RC, config.tokens, config.columns),
        num_rows,
        column_tiles,
        **static_arguments(config, dlogits_RC.dtype),
    )


def launch_place(dlogits_RC, ids_RK, ids_grad_RK, first_column: int) -> None:
    """dlogits_RC[r, ids_RK[r, k] - first_column] = ids_grad_RK[r, k], where that is a column of the chunk."""
    _place_kernel[(triton.cdiv(ids_RK.numel(), PLACE_BLOCK),)](
        dlogits_RC,
        ids_RK,
        ids_grad_RK,
        first_column,
        dlogits_RC.shape[1],
        dlogits_RC.stride(0),
        ids_RK.shape[1],
        ids_RK.numel(),
        BLOCK=PLACE_BLOCK,
    )


@triton.jit(do_not_specialize=["num_slots", "num_rows", "num_parts", "blocks_per_part"])
def _buckets_kernel(
    hidden, head, hidden_size, inverse_temperature, softcap, ids_ptr, picked_ptr, parts_ptr,
    num_slots, num_rows, num_columns, num_parts, blocks_per_part,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """picked[row, slot] = logit of the id in that slot; parts[part] = maximum and sum over the other columns.

    A row's ids ascend, and its last slot holds num_columns or more, which no block reaches.
    """
    tile, part = grouped(tl.program_id(0), tl.cdiv(num_rows, BLOCK_N), num_parts, GROUP)
    row_N = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_N = row_N < num_rows
    slot_N = tl.minimum(row_N, num_rows - 1).to(tl.int64) * num_slots
    before_N = tl.zeros((BLOCK_N,), tl.int32)  # ids that earlier parts look for
    for start in range(0, num_slots, SEARCH):
        place_S = start + tl.arange(0, SEARCH)
        id_NS = tl.load(
            ids_ptr + slot_N[:, None] + place_S[None, :], mask=(place_S < num_slots)[None, :], other=num_columns
        )
        before_N += tl.sum((id_NS < part * blocks_per_part * BLOCK_C).to(tl.int32), axis=1)
    slot_N += tl.where(inside_N, before_N, num_slots - 1)
    maximum_N = tl.full((BLOCK_N,), LOWEST_LOGIT, tl.float32)
    sum_N = tl.zeros((BLOCK_N,), tl.float32)
    last = min((part + 1) * blocks_per_part, tl.cdiv(num_columns, BLOCK_C))
    for block in range(part * blocks_per_part, last):
        logits_NC = _logits(
            hidden, head, hidden_size, inverse_temperature, softcap,
            tile * BLOCK_N, block * BLOCK_C, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION,
        )  # fmt: skip
        column_C = tl.arange(0, BLOCK_C)  # in the block: constants, which take no registers
        # a block may hold nothing of the tail: -inf against a finite maximum adds 0
        logits_NC = tl.where((column_C < num_columns - block * BLOCK_C)[None, :], logits_NC, float("-inf"))
        edge = min((block + 1) * BLOCK_C, num_columns)
        id_N = tl.load(ids_ptr + slot_N)
        while tl.min(id_N) < edge:
            is_id_NC = column_C[None, :] == (id_N - block * BLOCK_C)[:, None]
            hit_N = tl.max(tl.where(is_id_NC, logits_NC, float("-inf")), axis=1)
            logits_NC = tl.where(is_id_NC, float("-inf"), logits_NC)
            tl.store(picked_ptr + slot_N, hit_N, mask=id_N < edge)
            slot_N += (id_N < edge).to(tl.int32)
            id_N = tl.load(ids_ptr + slot_N)
        after_N = tl.maximum(maximum_N, tl.max(logits_NC, axis=1))
        sum_N = sum_N * tl.exp(maximum_N - after_N) + tl.sum(tl.exp(logits_NC - after_N[:, None]), axis=1)
        maximum_N = after_N
    out_N = parts_ptr + part.to(tl.int64) * 2 * num_rows + row_N
    tl.store(out_N, maximum_N, mask=inside_N)
    tl.store(out_N + num_rows, sum_N, mask=inside_N)


@triton.jit(
    do_not_specialize=["num_rows", "num_column_tiles"],
    do_not_specialize_on_alignment=["top_ptr", "log_sum_ptr", "tail_ptr", "tail_grad_ptr", "all_grad_ptr"],
)
def _tail_dlogits_kernel(
    hidden, head, hidden_size, inverse_temperature, softcap,
    top_ptr, log_sum_ptr, tail_ptr, tail_grad_ptr, all_grad_ptr,
    dlogits, num_rows, num_column_tiles,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile, part = grouped(tl.program_id(0), tl.cdiv(num_rows, BLOCK_N), num_column_tiles, GROUP)
    row, column = tile * BLOCK_N, part * BLOCK_C
    logits_NC = _logits(
        hidden, head, hidden_size, inverse_temperature, softcap, row, column, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION
    )  # fmt: skip
    row_N = row + tl.arange(0, BLOCK_N)
    inside_N = row_N < num_rows
    top_N1 = tl.load(top_ptr + row_N, mask=inside_N, other=0.0)[:, None]
    log_sum_N1 = tl.load(log_sum_ptr + row_N, mask=inside_N, other=0.0)[:, None]
    tail_N1 = tl.load(tail_ptr + row_N, mask=inside_N, other=0.0)[:, None]
    tail_grad_N1 = tl.load(tail_grad_ptr + row_N, mask=inside_N, other=0.0)[:, None]
    all_grad_N1 = tl.load(all_grad_ptr + row_N, mask=inside_N, other=0.0)[:, None]
    # two subtractions: top + log-sum would lose the log-sum where logits are large
    log_q_NC = logits_NC - top_N1 - log_sum_N1
    # in the tail q_j / q_tail is at most 1; at an id it may be anything and is written over
    share_NC = tl.exp(tl.minimum(log_q_NC - tail_N1, 0.0))
    slope_NC = share_NC * tail_grad_N1 - tl.exp(log_q_NC) * all_grad_N1
    if softcap is not None:  # logits are cap tanh(x / cap) / temperature
        tanh_NC = logits_NC / (softcap * inverse_temperature)
        slope_NC *= 1.0 - tanh_NC * tanh_NC
    dlogits.store([row, column], slope_NC.to(dlogits.dtype))


@triton.jit(do_not_specialize=["first_column", "num_columns", "num_stored", "num_entries"])
def _place_kernel(
    dlogits_ptr, ids_ptr, ids_grad_ptr, first_column, num_columns, row_stride, num_stored, num_entries,
    BLOCK: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = entry < num_entries
    column = tl.load(ids_ptr + entry, mask=real, other=-1) - first_column
    gradient = tl.load(ids_grad_ptr + entry, mask=real, other=0.0)
    place = dlogits_ptr + entry // num_stored * row_stride + column
    tl.store(place, gradient.to(dlogits_ptr.dtype.element_ty), mask=real & (column >= 0) & (column < num_columns))
