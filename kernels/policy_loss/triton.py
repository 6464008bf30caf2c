"""Triton: loss, its derivative and all metrics in one pass over the tokens; the sequence ratio takes one pass before.

Each program owns a block of tokens and writes one row of partial metrics, which are summed in a fixed order: no
atomics, equal bits in every run. The forward pass already knows d loss / d log p, so that backward is one product.

Shape suffixes: T local tokens, B tokens of a block, S sequences, C chunks of the local row, P programs, M metrics.
"""

import torch
import triton
import triton.language as tl

from osim_kernels.policy_loss.config import PolicyLossConfig
from osim_kernels.policy_loss.metrics import SUMS, PolicyMetrics
from osim_kernels.policy_loss.reference import LOG_LIMIT
from osim_kernels.policy_loss.sequences import mean_log_ratio, sequence_of_token

BLOCK, NUM_WARPS = 1024, 4  # 8 tokens a thread: two 128-bit loads of each input in flight
CANDIDATES = ((1024, 4), (2048, 4), (2048, 8))
NUM_PARTIALS = len(SUMS) + 1  # and the maximum
_LIMIT = tl.constexpr(LOG_LIMIT)


def policy_loss_triton(
    logprob_T, old_logprob_T, sampler_logprob_T, advantage_T, weights_T, cu_seqlens_CS, group, config: PolicyLossConfig
):
    if weights_T.dtype != torch.float32:  # loads of one byte a token would be narrow and split the others
        weights_T = (weights_T != 0).to(torch.float32)
    sequence_T = mean_S = None
    if config.ratio == "sequence":
        cu_seqlens_CS = cu_seqlens_CS.contiguous()
        num_chunks, num_sequences = cu_seqlens_CS.shape[0], cu_seqlens_CS.shape[1] - 1
        sums_CS2 = logprob_T.new_empty(num_chunks, num_sequences, 2)
        _sequence_kernel[(num_chunks * num_sequences,)](
            logprob_T.detach().contiguous(),
            old_logprob_T.contiguous(),
            weights_T.contiguous(),
            cu_seqlens_CS,
            sums_CS2,
            num_sequences,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )
        mean_S = mean_log_ratio(sums_CS2, group)
        sequence_T = sequence_of_token(cu_seqlens_CS, len(logprob_T))
    loss_T, partials_PM = _PolicyLoss.apply(
        logprob_T, old_logprob_T, sampler_logprob_T, advantage_T, weights_T, sequence_T, mean_S, config
    )
    sums_M = partials_PM[:, :-1].sum(dim=0, dtype=torch.float64)
    return loss_T, PolicyMetrics(sums_M, partials_PM[:, -1].amax().double())


class _PolicyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logprob_T, old_logprob_T, sampler_logprob_T, advantage_T, weights_T, sequence_T, mean_S, config):
        num_tokens = len(logprob_T)
        num_programs = max(1, triton.cdiv(num_tokens, BLOCK))
        loss_T, slope_T = torch.empty_like(old_logprob_T), torch.empty_like(old_logprob_T)
        partials_PM = logprob_T.new_empty(num_programs, NUM_PARTIALS)
        lower_up, upper_up, lower_down, upper_down = config.bounds
        _token_kernel[(num_programs,)](
            logprob_T.contiguous(),
            old_logprob_T.contiguous(),
            None if sampler_logprob_T is None else sampler_logprob_T.contiguous(),
            advantage_T.contiguous(),
            weights_T.contiguous(),
            sequence_T,
            mean_S,
            loss_T,
            slope_T,
            partials_PM,
            num_tokens,
            lower_up,
            upper_up,
            lower_down,
            upper_down,
            config.sampler_cap,
            CISPO=config.surrogate == "cispo",
            NUM_PARTIALS=NUM_PARTIALS,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )
        ctx.save_for_backward(slope_T)
        ctx.mark_non_differentiable(partials_PM)
        return loss_T, partials_PM

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss_T, _grad_partials):
        (slope_T,) = ctx.saved_tensors
        return grad_loss_T * slope_T, None, None, None, None, None, None, None


@triton.jit(do_not_specialize=["num_sequences"])
def _sequence_kernel(logprob, old_logprob, weights, cu_seqlens, sums, num_sequences, BLOCK: tl.constexpr):
    """sums[c, s] = (sum of log-ratios, tokens) of sequence s within chunk c, over tokens of non-zero weight."""
    part = tl.program_id(0)
    border = part // num_sequences * (num_sequences + 1) + part % num_sequences
    start, stop = tl.load(cu_seqlens + border), tl.load(cu_seqlens + border + 1)
    sum_B = tl.zeros([BLOCK], tl.float32)
    count_B = tl.zeros([BLOCK], tl.float32)
    for first in range(start, stop, BLOCK):
        row_B = first + tl.arange(0, BLOCK)
        inside_B = row_B < stop
        active_B = inside_B & (tl.load(weights + row_B, mask=inside_B, other=0) != 0)
        new_B = tl.load(logprob + row_B, mask=inside_B, other=0.0)
        old_B = tl.load(old_logprob + row_B, mask=inside_B, other=0.0)
        sum_B += tl.where(active_B, new_B - old_B, 0.0)
        count_B += active_B.to(tl.float32)
    tl.store(sums + 2 * part, tl.sum(sum_B))
    tl.store(sums + 2 * part + 1, tl.sum(count_B))


@triton.jit
def _read(source, row_B, num_tokens, WHOLE: tl.constexpr):
    """A block's values. Unmasked in all blocks but the last, since a mask whose end the compiler cannot see aligned
    would split the 128-bit loads."""
    if WHOLE:
        return tl.load(source + row_B)
    else:
        return tl.load(source + row_B, mask=row_B < num_tokens, other=0)


@triton.jit
def _write(target, row_B, values_B, num_tokens, WHOLE: tl.constexpr):
    if WHOLE:
        tl.store(target + row_B, values_B)
    else:
        tl.store(target + row_B, values_B, mask=row_B < num_tokens)


@triton.jit
def _exp_limited(x_B):
    """exp with its argument held within +-LOG_LIMIT; NaN stays NaN, so that the guard against non-finite sees it."""
    return tl.exp(tl.where(x_B > _LIMIT, _LIMIT, tl.where(x_B < -_LIMIT, -_LIMIT, x_B)))


@triton.jit
def _block(
    logprob,
    old_logprob,
    sampler_logprob,
    advantage,
    weights,
    sequence,
    mean_log_ratio,
    loss,
    slope,
    partials,
    num_tokens,
    lower_up,
    upper_up,
    lower_down,
    upper_down,
    sampler_cap,
    CISPO: tl.constexpr,
    NUM_PARTIALS: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    program = tl.program_id(0)
    row_B = program * BLOCK + tl.arange(0, BLOCK)
    # rows outside count as masked; masked rows may hold NaN, so their inputs are replaced before any arithmetic
    active_B = _read(weights, row_B, num_tokens, WHOLE) != 0
    if sequence is not None:
        sequence_B = _read(sequence, row_B, num_tokens, WHOLE)
        active_B = active_B & (sequence_B >= 0)
    new_B = tl.where(active_B, _read(logprob, row_B, num_tokens, WHOLE), 0.0)
    old_B = tl.where(active_B, _read(old_logprob, row_B, num_tokens, WHOLE), 0.0)
    advantage_B = tl.where(active_B, _read(advantage, row_B, num_tokens, WHOLE), 0.0)

    log_ratio_B = new_B - old_B
    used_B = log_ratio_B
    if sequence is not None:
        used_B = tl.load(mean_log_ratio + sequence_B, mask=active_B, other=0.0)
    ratio_B = _exp_limited(used_B)

    weight_B = tl.full([BLOCK], 1.0, tl.float32)
    mismatch_B = tl.zeros([BLOCK], tl.float32)
    mismatch_exp_B = tl.zeros([BLOCK], tl.float32)
    truncated_B = active_B & False
    if sampler_logprob is not None:
        signed_B = tl.where(active_B, old_B - _read(sampler_logprob, row_B, num_tokens, WHOLE), 0.0)
        mismatch_B = tl.abs(signed_B)
        mismatch_exp_B = tl.where(active_B, _exp_limited(mismatch_B), 0.0)
        if sampler_cap is not None:
            weight_B = _exp_limited(signed_B)
            truncated_B = active_B & (weight_B > sampler_cap)
            weight_B = tl.where(truncated_B, sampler_cap, weight_B)

    lower_B = tl.where(advantage_B > 0, lower_up, lower_down)
    upper_B = tl.where(advantage_B > 0, upper_up, upper_down)
    below_B = (advantage_B != 0) & (ratio_B < lower_B)
    above_B = (advantage_B != 0) & (ratio_B > upper_B)
    bounded_B = tl.where(below_B, lower_B, tl.where(above_B, upper_B, ratio_B))
    scale_B = -weight_B * advantage_B
    if CISPO:
        slope_B = scale_B * bounded_B
        loss_B = slope_B * new_B
        dual_B = active_B & False
    else:
        loss_B = scale_B * bounded_B
        held_B = below_B | above_B | (tl.abs(used_B) > _LIMIT)
        slope_B = tl.where(held_B, 0.0, loss_B)
        dual_B = above_B & (advantage_B < 0)
        above_B = above_B & (advantage_B > 0)
    _write(loss, row_B, tl.where(active_B, loss_B, 0.0), num_tokens, WHOLE)
    _write(slope, row_B, tl.where(active_B, slope_B, 0.0), num_tokens, WHOLE)

    k3_B = _exp_limited(log_ratio_B) - 1.0 - log_ratio_B  # 0 in masked rows, as k1 and k2 are
    row = partials + program * NUM_PARTIALS
    tl.store(row + 0, tl.sum(active_B.to(tl.float32)))
    tl.store(row + 1, tl.sum(below_B.to(tl.float32)))
    tl.store(row + 2, tl.sum(above_B.to(tl.float32)))
    tl.store(row + 3, tl.sum(dual_B.to(tl.float32)))
    tl.store(row + 4, tl.sum(tl.where(active_B, ratio_B, 0.0)))
    tl.store(row + 5, tl.sum(-log_ratio_B))
    tl.store(row + 6, tl.sum(0.5 * log_ratio_B * log_ratio_B))
    tl.store(row + 7, tl.sum(k3_B))
    tl.store(row + 8, tl.sum(mismatch_B))
    tl.store(row + 9, tl.sum(mismatch_exp_B))
    tl.store(row + 10, tl.sum(tl.where(active_B, weight_B, 0.0)))
    tl.store(row + 11, tl.sum(truncated_B.to(tl.float32)))
    tl.store(row + 12, tl.max(mismatch_B, axis=0))


@triton.jit(do_not_specialize=["num_tokens"])
def _token_kernel(
    logprob,
    old_logprob,
    sampler_logprob,
    advantage,
    weights,
    sequence,
    mean_log_ratio,
    loss,
    slope,
    partials,
    num_tokens,
    lower_up,
    upper_up,
    lower_down,
    upper_down,
    sampler_cap,
    CISPO: tl.constexpr,
    NUM_PARTIALS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Loss, slope and one row of partial metrics of one block; `sequence`, `sampler_*` are None where unused."""
    if (tl.program_id(0) + 1) * BLOCK <= num_tokens:
        _block(
            logprob,
            old_logprob,
            sampler_logprob,
            advantage,
            weights,
            sequence,
            mean_log_ratio,
            loss,
            slope,
            partials,
            num_tokens,
            lower_up,
            upper_up,
            lower_down,
            upper_down,
            sampler_cap,
            CISPO,
            NUM_PARTIALS,
            BLOCK,
            WHOLE=True,
        )
    else:
        _block(
            logprob,
            old_logprob,
            sampler_logprob,
            advantage,
            weights,
            sequence,
            mean_log_ratio,
            loss,
            slope,
            partials,
            num_tokens,
            lower_up,
            upper_up,
            lower_down,
            upper_down,
            sampler_cap,
            CISPO,
            NUM_PARTIALS,
            BLOCK,
            WHOLE=False,
        )
