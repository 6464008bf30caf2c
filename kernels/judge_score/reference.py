"""The truth: whole logits, whole softmax, one label and one dimension at a time; fp64 for fp64 inputs.

Shape suffixes: I, K items, J dimensions, S contexts, D hidden, V vocabulary, L labels of all dimensions, N of one.
"""

import torch

from osim_kernels.judge_score.anchors import anchor_tokens
from osim_kernels.judge_score.scores import GIVEN, LOW_MASS, NON_FINITE, GroupAdvantages, JudgeScores


def judge_score_reference(
    hidden_ISD, head_VD, labels, *, min_mass, anchor_logprob_IS, missing_IJ, multiplier_I, vocab_size, **one_rank
):
    wide = torch.promote_types(hidden_ISD.dtype, torch.float32)
    logits_ISV = hidden_ISD.to(wide) @ head_VD[:vocab_size].to(wide).T
    logprob_ISV = logits_ISV.log_softmax(dim=-1)
    if anchor_logprob_IS is not None:
        anchor_S = anchor_tokens(labels, hidden_ISD.device)
        contexts_S = torch.arange(len(anchor_S), device=hidden_ISD.device)
        logprob_ISV = (logits_ISV - logits_ISV[:, contexts_S, anchor_S, None]) + anchor_logprob_IS[..., None]
    knows_mass = anchor_logprob_IS is not None or min_mass is not None or labels.depth > 1

    columns, label_logprobs = [], []
    for j, dimension in enumerate(labels.dimensions):
        log_mass_IN = torch.stack(
            [
                torch.stack(
                    [
                        sum(
                            logprob_ISV[:, labels.contexts.index((j, variant[:length])), token]
                            for length, token in enumerate(variant)
                        )
                        for variant in label
                    ]
                ).logsumexp(dim=0)
                for label in dimension.labels
            ],
            dim=1,
        )
        bias_N = torch.tensor(dimension.bias or (0.0,) * len(dimension.labels), dtype=wide, device=hidden_ISD.device)
        value_N = torch.tensor(dimension.values, dtype=wide, device=hidden_ISD.device)
        calibrated_IN = (log_mass_IN / dimension.temperature + bias_N).log_softmax(dim=1)
        probability_IN = calibrated_IN.exp()
        score_I = probability_IN @ value_N
        entropy_I = -(probability_IN * calibrated_IN).sum(dim=1)
        ranked_IN = probability_IN.sort(dim=1, descending=True).values
        margin_I = ranked_IN[:, 0] - (ranked_IN[:, 1] if len(value_N) > 1 else 0.0)
        mass_I = log_mass_IN.exp().sum(dim=1) if knows_mass else torch.full_like(score_I, torch.nan)

        reason_I = torch.zeros(len(score_I), dtype=torch.int32, device=hidden_ISD.device)
        if min_mass is not None:
            reason_I[mass_I < min_mass] = LOW_MASS
        reason_I[~log_mass_IN.isfinite().all(dim=1)] = NON_FINITE
        if missing_IJ is not None:
            reason_I[missing_IJ[:, j]] = GIVEN
        present_I = reason_I == 0
        mass_I = mass_I.where(present_I | (reason_I == LOW_MASS), torch.nan)
        worst, best = dimension.scale
        kept = [
            x.where(present_I, torch.nan) for x in (score_I, (score_I - worst) / (best - worst), entropy_I, margin_I)
        ]
        columns.append((reason_I, *kept, mass_I))
        label_logprobs.append(calibrated_IN.where(present_I[:, None], torch.nan))

    reason_IJ, score_IJ, normalised_IJ, entropy_IJ, margin_IJ, mass_IJ = (
        torch.stack(column, dim=1) for column in zip(*columns, strict=True)
    )
    weight_J = torch.tensor([d.weight for d in labels.dimensions], dtype=wide, device=hidden_ISD.device)
    weight_IJ = weight_J * (reason_IJ == 0)
    raw_reward_I = (weight_IJ * normalised_IJ.nan_to_num(0.0)).sum(dim=1) / weight_IJ.sum(dim=1)  # 0 / 0 is missing
    reward_I = raw_reward_I
    if multiplier_I is not None:
        reward_I = raw_reward_I * multiplier_I.where(multiplier_I.isfinite(), torch.nan)
    return JudgeScores(
        reason_IJ=reason_IJ,
        label_logprob_IL=torch.cat(label_logprobs, dim=1),
        score_IJ=score_IJ,
        normalised_IJ=normalised_IJ,
        entropy_IJ=entropy_IJ,
        margin_IJ=margin_IJ,
        mass_IJ=mass_IJ,
        raw_reward_I=raw_reward_I,
        reward_I=reward_I,
    )


def group_advantages_reference(reward_I, group_I, kind, epsilon):
    present_I = reward_I.isfinite()
    counted_IK = (group_I[:, None] == group_I) & present_I
    size_I = counted_IK.sum(dim=1)
    # rewards above the group's least: where all are equal every one is exactly 0, and so are std and advantage
    least_I = torch.where(counted_IK, reward_I, torch.inf).amin(dim=1) if len(reward_I) else reward_I
    above_IK = torch.where(counted_IK, reward_I - least_I[:, None], 0.0)
    mean_above_I = above_IK.sum(dim=1) / size_I.clamp(min=1)
    square_IK = torch.where(counted_IK, above_IK - mean_above_I[:, None], 0.0).square()
    std_I = (square_IK.sum(dim=1) / (size_I - 1).clamp(min=1)).sqrt()
    advantage_I = reward_I - least_I - mean_above_I
    if kind == "grpo":
        advantage_I = advantage_I / (std_I + epsilon)
    elif kind == "rloo":
        advantage_I = advantage_I * size_I / (size_I - 1).clamp(min=1)
    return GroupAdvantages(
        advantage_I=advantage_I.where(present_I & (size_I > 1), 0.0),
        mean_I=(least_I + mean_above_I).where(size_I > 0, torch.nan),
        std_I=std_I,
        size_I=size_I.to(torch.int32),
    )
