"""The truth: plain PyTorch, the gradient by autograd. Also what runs on the CPU: there is no matmul here to save.

Shape suffixes: T tokens, S sequences, C chunks of the local row.
"""

import torch

from osim_kernels.policy_loss.config import PolicyLossConfig
from osim_kernels.policy_loss.metrics import PolicyMetrics
from osim_kernels.policy_loss.sequences import mean_log_ratio, sequence_of_token

LOG_LIMIT = 20.0  # a ratio is exp(log-ratio within +-20), at most 4.9e8: finite in fp32, and past it no gradient


def policy_loss_reference(
    logprob_T, old_logprob_T, sampler_logprob_T, advantage_T, weights_T, cu_seqlens_CS, group, config: PolicyLossConfig
):
    active_T = weights_T != 0
    # rows of weight 0 may hold anything, NaN too, and `where` before any arithmetic keeps it out of the gradient
    logprob_T = torch.where(active_T, logprob_T, 0.0)
    old_logprob_T = torch.where(active_T, old_logprob_T, 0.0)
    advantage_T = torch.where(active_T, advantage_T, 0.0)
    log_ratio_T = logprob_T - old_logprob_T
    if config.ratio == "sequence":
        sequence_T = sequence_of_token(cu_seqlens_CS, len(logprob_T))
        active_T = active_T & (sequence_T >= 0)
        sequence_T = sequence_T.clamp(min=0)
        mean_S = mean_log_ratio(_sequence_sums(log_ratio_T.detach(), active_T, sequence_T, cu_seqlens_CS), group)
        # the sequence's value with the token's gradient: s_t = sg(s) p / sg(p)
        used_T = mean_S.to(log_ratio_T.dtype)[sequence_T] + log_ratio_T - log_ratio_T.detach()
    else:
        used_T = log_ratio_T
    ratio_T = used_T.clamp(-LOG_LIMIT, LOG_LIMIT).exp()

    weight_T = torch.ones_like(old_logprob_T)
    mismatch_T = torch.zeros_like(old_logprob_T)
    truncated_T = torch.zeros_like(active_T)
    if sampler_logprob_T is not None:
        signed_T = torch.where(active_T, old_logprob_T - sampler_logprob_T, 0.0)
        mismatch_T = signed_T.abs()
        if config.sampler_cap is not None:
            correction_T = signed_T.clamp(-LOG_LIMIT, LOG_LIMIT).exp()
            truncated_T = correction_T > config.sampler_cap
            weight_T = correction_T.clamp(max=config.sampler_cap)

    lower_up, upper_up, lower_down, upper_down = config.bounds
    lower_T = torch.full_like(ratio_T, lower_down).masked_fill(advantage_T > 0, lower_up)
    upper_T = torch.full_like(ratio_T, upper_down).masked_fill(advantage_T > 0, upper_up)
    signed_push_T = active_T & (advantage_T != 0)
    below_T, above_T = signed_push_T & (ratio_T < lower_T), signed_push_T & (ratio_T > upper_T)
    # at the bound itself the gradient passes: torch.clamp would agree, min() would share it
    bounded_T = torch.where(below_T, lower_T, torch.where(above_T, upper_T, ratio_T))
    if config.surrogate == "cispo":
        loss_T = -weight_T * advantage_T * bounded_T.detach() * logprob_T
    else:
        loss_T = -weight_T * advantage_T * bounded_T
    loss_T = torch.where(active_T, loss_T, 0.0)

    with torch.no_grad():
        dual_T = above_T & (advantage_T < 0) & (config.surrogate == "clip")
        sums = (
            active_T,
            below_T,
            above_T & ~dual_T,
            dual_T,
            ratio_T * active_T,
            -log_ratio_T * active_T,
            0.5 * log_ratio_T.square() * active_T,
            (log_ratio_T.clamp(-LOG_LIMIT, LOG_LIMIT).exp() - 1 - log_ratio_T) * active_T,
            mismatch_T,
            mismatch_T.clamp(max=LOG_LIMIT).exp() * active_T if sampler_logprob_T is not None else mismatch_T,
            weight_T * active_T,
            truncated_T & active_T,
        )
        metrics = PolicyMetrics(
            torch.stack([values_T.sum(dtype=torch.float64) for values_T in sums]),
            mismatch_T.amax().double() if len(mismatch_T) else mismatch_T.new_zeros((), dtype=torch.float64),
        )
    return loss_T, metrics


def _sequence_sums(log_ratio_T, active_T, sequence_T, cu_seqlens_CS):
    """[1, S, 2] fp64: this rank's sum of log-ratios and count of tokens for each sequence."""
    pairs_T2 = torch.stack((log_ratio_T * active_T, active_T.to(log_ratio_T.dtype)), dim=1).double()
    return pairs_T2.new_zeros(1, cu_seqlens_CS.shape[1] - 1, 2).index_add_(1, sequence_T, pairs_T2[None])
