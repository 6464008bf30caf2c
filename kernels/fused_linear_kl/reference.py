"""The truth: both whole [N, V] logits, one rank, fp32 (fp64 for fp64 inputs), gradients by autograd.

Shape suffixes: N tokens of non-zero weight, D and E hidden sizes of student and teacher, V vocabulary, K stored ids.
"""

import torch

from osim_kernels.fused_linear_kl.divergence import Divergence, Scaling, divergence_of


def fused_linear_kl_reference(
    student_ND, student_VD, teacher_NE, teacher_VE, *, real_rows, group, divergence: Divergence, student, teacher
):
    log_q_NV = _log_probs(student_ND, student_VD[:real_rows], student)
    with torch.no_grad():
        log_p_NV = _log_probs(teacher_NE, teacher_VE[:real_rows], teacher)
    return divergence_of(divergence, log_p_NV, log_q_NV)


def bucket_logprobs_reference(hidden_ND, weight_VD, ids_NK, *, real_rows, group, student: Scaling):
    log_q_NV = _log_probs(hidden_ND, weight_VD[:real_rows], student)
    known_NK = ids_NK >= 0
    picked_NK = log_q_NV.gather(1, ids_NK.clamp(min=0)).masked_fill(~known_NK, -torch.inf)
    stored_NV = torch.zeros(log_q_NV.shape[0], real_rows + 1, dtype=torch.bool, device=ids_NK.device)
    stored_NV = stored_NV.scatter(1, ids_NK.where(known_NK, real_rows), True)[:, :-1]
    # a row whose ids cover the vocabulary has no tail: -inf, and no gradient through it
    covered_N1 = stored_NV.all(dim=1, keepdim=True)
    rest_NV = log_q_NV.masked_fill(stored_NV & ~covered_N1, -torch.inf)
    tail_N1 = rest_NV.logsumexp(dim=1, keepdim=True).masked_fill(covered_N1, -torch.inf)
    return torch.cat((picked_NK, tail_N1), dim=1)


def _log_probs(hidden, weight, scaling: Scaling):
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits = hidden.to(wide) @ weight.to(wide).T
    if scaling.softcap is not None:
        logits = scaling.softcap * torch.tanh(logits / scaling.softcap)
    return (logits / scaling.temperature).log_softmax(dim=-1)
