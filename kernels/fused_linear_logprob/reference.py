"""The truth: the whole [T, V] logits, one rank, fp32 (fp64 for fp64 inputs). The only place where logits are whole.

Shape suffixes: T tokens, N tokens of non-zero weight, D hidden, V vocabulary.
"""

import torch


def fused_linear_logprob_reference(
    hidden_TD,
    weight_VD,
    targets_T,
    *,
    weights_T,
    vocab_size,
    temperature,
    logit_softcap,
    with_entropy,
    **one_rank,
):
    wide = torch.promote_types(hidden_TD.dtype, torch.float32)
    logits_TV = hidden_TD.to(wide) @ weight_VD[:vocab_size].to(wide).T
    if logit_softcap is not None:
        logits_TV = logit_softcap * torch.tanh(logits_TV / logit_softcap)
    logprobs_TV = (logits_TV / temperature).log_softmax(dim=-1)
    active_T = torch.ones_like(targets_T, dtype=torch.bool) if weights_T is None else weights_T != 0
    targets_T = targets_T.where(active_T, 0)  # rows of weight 0 may hold any id
    logprob_T = logprobs_TV.gather(1, targets_T[:, None])[:, 0].where(active_T, 0.0)
    if not with_entropy:
        return logprob_T, None
    return logprob_T, -(logprobs_TV.exp() * logprobs_TV).sum(dim=-1).where(active_T, 0.0)
