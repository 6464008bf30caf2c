"""Plain PyTorch on any device: only the label rows of the head are read, and all dimensions are computed at once.

Shape suffixes: I items, J dimensions, S contexts, D hidden, V this rank's rows of the head, E edges, C edges of one
context, L labels of all dimensions, N of one, R variants of one label.
"""

import torch
import torch.distributed as dist

from osim_kernels.fused_linear_logprob.products import operand, product
from osim_kernels.judge_score.anchors import anchors_if_needed
from osim_kernels.judge_score.labels import JudgeLabels
from osim_kernels.judge_score.scores import GIVEN, LOW_MASS, NON_FINITE, PRESENT, GroupAdvantages, JudgeScores
from osim_kernels.judge_score.tables import LabelTables, label_tables


def judge_score_gathered(
    hidden_ISD,
    head_VD,
    labels: JudgeLabels,
    *,
    min_mass,
    anchor_logprob_IS,
    missing_IJ,
    multiplier_I,
    group,
    vocab_start,
    vocab_size,
):
    anchor_logprob_IS = anchors_if_needed(
        hidden_ISD,
        head_VD,
        labels,
        min_mass=min_mass,
        known_IS=anchor_logprob_IS,
        group=group,
        vocab_start=vocab_start,
        vocab_size=vocab_size,
    )
    wide = torch.promote_types(hidden_ISD.dtype, torch.float32)
    tables = label_tables(labels, hidden_ISD.device, wide)
    logits_IE = label_logits(hidden_ISD, head_VD, labels, vocab_start)
    if group is not None:  # every logit is one rank's, and 0 elsewhere
        dist.all_reduce(logits_IE, group=group)
    return scores_of(logits_IE, anchor_logprob_IS, tables, min_mass, missing_IJ, multiplier_I)


def label_logits(hidden_ISD, head_VD, labels: JudgeLabels, vocab_start: int) -> torch.Tensor:
    """[I, E] logit of each edge in its context; 0 where this rank does not hold the token."""
    tables = label_tables(labels, hidden_ISD.device)
    row_E = tables.token_E - vocab_start
    mine_E = (row_E >= 0) & (row_E < len(head_VD))
    label_rows_ED = operand(head_VD[row_E.where(mine_E, 0)])
    hidden_ISD = operand(hidden_ISD)
    logits = [
        product(hidden_ISD[:, s], rows_CD.T) for s, rows_CD in enumerate(label_rows_ED.split(labels.edges_per_context))
    ]
    return torch.cat(logits, dim=1).where(mine_E, 0.0)


def scores_of(logits_IE, anchor_logprob_IS, tables: LabelTables, min_mass, missing_IJ, multiplier_I) -> JudgeScores:
    """Everything behind the logits."""
    log_mass_IL = _log_mass(logits_IE, anchor_logprob_IS, tables)
    real_JN = tables.label_JN >= 0
    calibrated_IL = log_mass_IL / tables.temperature_J[tables.dimension_L] + tables.bias_L
    logprob_IJN = _by_dimension(calibrated_IL, tables, -torch.inf).log_softmax(dim=-1)
    probability_IJN = logprob_IJN.exp()
    score_IJ = (probability_IJN * _by_dimension(tables.value_L, tables, 0.0)).sum(dim=-1)
    entropy_IJ = -(probability_IJN * logprob_IJN.where(real_JN, 0.0)).sum(dim=-1)
    if real_JN.shape[1] > 1:
        first_two_IJ2 = probability_IJN.topk(2, dim=-1).values
        margin_IJ = first_two_IJ2[..., 0] - first_two_IJ2[..., 1]
    else:
        margin_IJ = probability_IJN[..., 0]

    reason_IJ = torch.full(score_IJ.shape, PRESENT, dtype=torch.int32, device=score_IJ.device)
    mass_IJ = torch.full_like(score_IJ, torch.nan)
    if anchor_logprob_IS is not None:
        mass_IJ = _by_dimension(log_mass_IL.exp(), tables, 0.0).sum(dim=-1)
        if min_mass is not None:
            reason_IJ.masked_fill_(mass_IJ < min_mass, LOW_MASS)
    finite_IJ = _by_dimension(log_mass_IL, tables, 0.0).isfinite().all(dim=-1)
    reason_IJ.masked_fill_(~finite_IJ, NON_FINITE)
    if missing_IJ is not None:
        reason_IJ.masked_fill_(missing_IJ, GIVEN)

    present_IJ = reason_IJ == PRESENT
    normalised_IJ = (score_IJ - tables.worst_J) / (tables.best_J - tables.worst_J)
    weight_IJ = tables.weight_J * present_IJ
    # 0 / 0, an item without a present weight, is NaN: missing
    raw_reward_I = (weight_IJ * normalised_IJ.where(present_IJ, 0.0)).sum(dim=1) / weight_IJ.sum(dim=1)
    reward_I = raw_reward_I
    if multiplier_I is not None:
        reward_I = raw_reward_I * multiplier_I.where(multiplier_I.isfinite(), torch.nan)
    logprob_IL = logprob_IJN[:, tables.dimension_L, tables.place_L]
    return JudgeScores(
        reason_IJ=reason_IJ,
        label_logprob_IL=logprob_IL.where(present_IJ[:, tables.dimension_L], torch.nan),
        score_IJ=score_IJ.where(present_IJ, torch.nan),
        normalised_IJ=normalised_IJ.where(present_IJ, torch.nan),
        entropy_IJ=entropy_IJ.where(present_IJ, torch.nan),
        margin_IJ=margin_IJ.where(present_IJ, torch.nan),
        mass_IJ=mass_IJ.where(present_IJ | (reason_IJ == LOW_MASS), torch.nan),
        raw_reward_I=raw_reward_I,
        reward_I=reward_I,
    )


def _log_mass(logits_IE, anchor_logprob_IS, tables: LabelTables) -> torch.Tensor:
    """[I, L] log-probability of each label over the whole vocabulary; without anchors, up to a constant of its row."""
    logprob_IE = logits_IE
    if anchor_logprob_IS is not None:
        logprob_IE = logits_IE - logits_IE[:, tables.anchor_E] + anchor_logprob_IS[:, tables.context_E]
    path_IE, before_E = logprob_IE, tables.parent_E
    for _ in range(tables.depth - 1):
        path_IE = path_IE + logprob_IE[:, before_E].where(before_E >= 0, 0.0)
        before_E = tables.parent_E[before_E].where(before_E >= 0, -1)
    return path_IE[:, tables.leaf_LR].where(tables.leaf_LR >= 0, -torch.inf).logsumexp(dim=-1)


def _by_dimension(values_L, tables: LabelTables, padding: float) -> torch.Tensor:
    """[..., L] to [..., J, N]."""
    return values_L[..., tables.label_JN].where(tables.label_JN >= 0, padding)


def group_advantages_gathered(reward_I, group_I, kind, epsilon) -> GroupAdvantages:
    present_I = reward_I.isfinite()
    _, group_I = group_I.unique(return_inverse=True)
    groups = int(group_I.max()) + 1 if len(group_I) else 0

    def total(values_I):
        return values_I.new_zeros(groups).index_add(0, group_I, values_I)[group_I]

    size_I = total(present_I.to(reward_I.dtype))
    # sums are of differences to the group's least reward: equal rewards give exactly 0
    least_I = reward_I.where(present_I, torch.inf)
    least_I = least_I.new_full((groups,), torch.inf).scatter_reduce(0, group_I, least_I, "amin")[group_I]
    above_I = (reward_I - least_I).where(present_I, 0.0)
    mean_above_I = total(above_I) / size_I.clamp(min=1)
    centred_I = (above_I - mean_above_I).where(present_I, 0.0)
    std_I = (total(centred_I.square()) / (size_I - 1).clamp(min=1)).sqrt()
    advantage_I = centred_I
    if kind == "grpo":
        advantage_I = centred_I / (std_I + epsilon)
    elif kind == "rloo":
        advantage_I = centred_I * size_I / (size_I - 1).clamp(min=1)
    compared_I = size_I > 1
    return GroupAdvantages(
        advantage_I=advantage_I.where(compared_I & present_I, 0.0),
        mean_I=(least_I + mean_above_I).where(size_I > 0, torch.nan),
        std_I=std_I.where(compared_I, 0.0),
        size_I=size_I.to(torch.int32),
    )
