"""Triton: three launches, label logits, scores with rewards, group advantages; nothing waits for the host.

`_logits_kernel` gives one context's edges to a tile of items: a small product whose right side is gathered from the
head, so hidden states are read once and no logit of another token is made. `_scores_kernel` gives a tile of items all
their dimensions, with the labels of one in a row of registers. `_groups_kernel` compares a tile of items with every
other one: group ids need neither order nor count. Fixed order, no atomics: equal bits in every run, and for equal
hidden states.

Shape suffixes: I (or B, of one tile) items, K items compared with, J dimensions, S contexts, D hidden (of one step), V
this rank's rows of the head, E edges (of one tile), L labels of all dimensions, N of one (padded), 5 figures.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import triton
import triton.language as tl

from osim_kernels.judge_score.anchors import anchors_if_needed
from osim_kernels.judge_score.labels import JudgeLabels
from osim_kernels.judge_score.scores import (
    GIVEN,
    LOW_MASS,
    NON_FINITE,
    PRESENT,
    GroupAdvantages,
    JudgeScores,
)
from osim_kernels.judge_score.tables import LabelTables, label_tables


@dataclass(frozen=True)
class Config:
    """One static configuration of the logits: tile of items x edges x depth, warps and pipeline stages."""

    items: int
    edges: int
    depth: int
    warps: int
    stages: int

    @property
    def name(self) -> str:
        return f"{self.items}x{self.edges}x{self.depth} w{self.warps} s{self.stages}"


# By element size and by whether a context has more than 16 edges. Chosen by the compile audit, not by timing: few items
# a tile, so that a batch fills the device, and all edges of a context, so that hidden states are read once.
LOGITS = {
    (2, False): Config(16, 16, 128, 2, 4),
    (2, True): Config(16, 32, 128, 4, 3),
    (4, False): Config(16, 16, 64, 4, 3),
    (4, True): Config(16, 32, 64, 4, 3),
}
CANDIDATES = {
    2: [Config(16, 16, 128, 2, 4), Config(16, 32, 128, 4, 3), Config(64, 16, 128, 4, 3), Config(32, 16, 256, 4, 3)],
    4: [Config(16, 16, 64, 4, 3), Config(32, 16, 64, 4, 3), Config(16, 32, 64, 4, 3)],
}
SCORES_BLOCK, SCORES_WARPS = 16, 4
GROUPS_BLOCK, GROUPS_WARPS = 32, 4
GROUPS_STEP = 64

_PRESENT, _GIVEN = tl.constexpr(PRESENT), tl.constexpr(GIVEN)
_NON_FINITE, _LOW_MASS = tl.constexpr(NON_FINITE), tl.constexpr(LOW_MASS)


def judge_score_triton(
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
    """The op of __init__.py; bf16, fp16 or fp32."""
    hidden_ISD = hidden_ISD.contiguous()
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
    tables = label_tables(labels, hidden_ISD.device)
    logits_IE = label_logits(hidden_ISD, head_VD, tables, max(labels.edges_per_context), vocab_start)
    if group is not None:  # every logit is one rank's, and 0 elsewhere
        dist.all_reduce(logits_IE, group=group)
    return scores_of(logits_IE, anchor_logprob_IS, tables, min_mass, missing_IJ, multiplier_I)


def label_logits(
    hidden_ISD, head_VD, tables: LabelTables, most_edges: int, vocab_start: int, config: Config | None = None
) -> torch.Tensor:
    """fp32 [I, E] logit of each edge in its context; 0 where this rank does not hold the token."""
    num_items, num_contexts, hidden_size = hidden_ISD.shape
    num_edges = len(tables.token_E)
    config = config or LOGITS[hidden_ISD.element_size(), most_edges > 16]
    logits_IE = hidden_ISD.new_empty(num_items, num_edges, dtype=torch.float32)
    if num_items:
        grid = (triton.cdiv(num_items, config.items), num_contexts, triton.cdiv(most_edges, config.edges))
        _logits_kernel[grid](
            hidden_ISD,
            head_VD,
            tables.token_E,
            tables.first_edge_S,
            logits_IE,
            num_items,
            num_contexts,
            num_edges,
            hidden_size,
            head_VD.stride(0),
            vocab_start,
            head_VD.shape[0],
            BLOCK_B=config.items,
            BLOCK_E=config.edges,
            BLOCK_D=config.depth,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return logits_IE


def scores_of(logits_IE, anchor_logprob_IS, tables: LabelTables, min_mass, missing_IJ, multiplier_I) -> JudgeScores:
    """Everything behind the logits."""
    num_items, num_edges = logits_IE.shape
    num_dimensions, most_labels = tables.label_JN.shape
    num_labels, most_variants = tables.leaf_LR.shape
    figures_5IJ = logits_IE.new_empty(5, num_items, num_dimensions)
    reason_IJ = logits_IE.new_empty(num_items, num_dimensions, dtype=torch.int32)
    logprob_IL = logits_IE.new_empty(num_items, num_labels)
    rewards_2I = logits_IE.new_empty(2, num_items)
    if num_items:
        _scores_kernel[(triton.cdiv(num_items, SCORES_BLOCK),)](
            logits_IE,
            None if anchor_logprob_IS is None else anchor_logprob_IS.contiguous(),
            None if missing_IJ is None else missing_IJ.contiguous().view(torch.uint8),
            None if multiplier_I is None else multiplier_I.contiguous(),
            tables.context_E,
            tables.anchor_E,
            tables.parent_E,
            tables.leaf_LR,
            tables.label_JN,
            tables.value_L,
            tables.bias_L,
            tables.temperature_J,
            tables.worst_J,
            tables.best_J,
            tables.weight_J,
            reason_IJ,
            figures_5IJ,
            logprob_IL,
            rewards_2I,
            -1.0 if min_mass is None else min_mass,
            num_items,
            num_dimensions,
            len(tables.first_edge_S) - 1,
            num_edges,
            num_labels,
            most_labels,
            most_variants,
            tables.depth,
            BLOCK_B=SCORES_BLOCK,
            BLOCK_N=triton.next_power_of_2(most_labels),
            num_warps=SCORES_WARPS,
        )
    score_IJ, normalised_IJ, entropy_IJ, margin_IJ, mass_IJ = figures_5IJ.unbind(0)
    raw_reward_I, reward_I = rewards_2I.unbind(0)
    return JudgeScores(
        reason_IJ=reason_IJ,
        label_logprob_IL=logprob_IL,
        score_IJ=score_IJ,
        normalised_IJ=normalised_IJ,
        entropy_IJ=entropy_IJ,
        margin_IJ=margin_IJ,
        mass_IJ=mass_IJ,
        raw_reward_I=raw_reward_I,
        reward_I=reward_I,
    )


def group_advantages_triton(reward_I, group_I, kind, epsilon) -> GroupAdvantages:
    num_items = len(reward_I)
    found_3I = reward_I.new_empty(3, num_items)
    size_I = reward_I.new_empty(num_items, dtype=torch.int32)
    if num_items:
        _groups_kernel[(triton.cdiv(num_items, GROUPS_BLOCK),)](
            reward_I.contiguous(),
            group_I.contiguous(),
            found_3I,
            size_I,
            num_items,
            epsilon,
            KIND=kind,
            BLOCK_B=GROUPS_BLOCK,
            BLOCK_K=GROUPS_STEP,
            num_warps=GROUPS_WARPS,
        )
    advantage_I, mean_I, std_I = found_3I.unbind(0)
    return GroupAdvantages(advantage_I=advantage_I, mean_I=mean_I, std_I=std_I, size_I=size_I)


@triton.jit(do_not_specialize=["num_items", "num_contexts", "num_edges", "vocab_start", "vocab_rows"])
def _logits_kernel(
    hidden,
    head,
    tokens,
    first_edge,
    logits,
    num_items,
    num_contexts,
    num_edges,
    hidden_size,
    head_stride,
    vocab_start,
    vocab_rows,
    BLOCK_B: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    context = tl.program_id(1)
    last_edge = tl.load(first_edge + context + 1)
    start = tl.load(first_edge + context) + tl.program_id(2) * BLOCK_E
    if start < last_edge:
        edge_E = start + tl.arange(0, BLOCK_E)
        real_E = edge_E < last_edge
        row_E = tl.load(tokens + edge_E, mask=real_E, other=0) - vocab_start
        mine_E = real_E & (row_E >= 0) & (row_E < vocab_rows)
        item_B = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
        inside_B = item_B < num_items
        depth_D = tl.arange(0, BLOCK_D)
        hidden_BD = hidden + (item_B.to(tl.int64) * num_contexts + context)[:, None] * hidden_size + depth_D[None, :]
        head_ED = head + row_E[:, None] * head_stride + depth_D[None, :]
        total_BE = tl.zeros((BLOCK_B, BLOCK_E), tl.float32)
        for depth in tl.range(0, hidden_size, BLOCK_D):
            left_D = depth_D < hidden_size - depth
            states = tl.load(hidden_BD + depth, mask=inside_B[:, None] & left_D[None, :], other=0.0)
            rows = tl.load(head_ED + depth, mask=mine_E[:, None] & left_D[None, :], other=0.0)
            total_BE = tl.dot(states, rows.T, total_BE, input_precision="ieee")
        out_BE = logits + item_B.to(tl.int64)[:, None] * num_edges + edge_E[None, :]
        tl.store(out_BE, total_BE, mask=inside_B[:, None] & real_E[None, :])


@triton.jit
def _log_mass(
    logits, anchors, context_of, anchor_of, parent_of, leaf, item_B, inside_B, label_N, real_N,
    num_edges, num_contexts, variants, depth,
):  # fmt: skip
    """[B, N] log-probability of each label; without anchors, up to a constant of its row. 0 where there is none."""
    row_B = item_B.to(tl.int64) * num_edges
    highest_BN = tl.full((item_B.shape[0], label_N.shape[0]), float("-inf"), tl.float32)
    sum_BN = tl.zeros((item_B.shape[0], label_N.shape[0]), tl.float32)
    for variant in range(variants):
        edge_N = tl.load(leaf + label_N * variants + variant, mask=real_N, other=-1)
        path_BN = tl.zeros((item_B.shape[0], label_N.shape[0]), tl.float32)
        known_N = edge_N >= 0
        for _ in range(depth):
            on_path_N = edge_N >= 0
            on_path_BN = inside_B[:, None] & on_path_N[None, :]
            path_BN += tl.load(logits + row_B[:, None] + edge_N[None, :], mask=on_path_BN, other=0.0)
            if anchors is not None:
                anchor_N = tl.load(anchor_of + edge_N, mask=on_path_N, other=0)
                context_N = tl.load(context_of + edge_N, mask=on_path_N, other=0)
                known_BN = anchors + (item_B.to(tl.int64) * num_contexts)[:, None] + context_N[None, :]
                path_BN -= tl.load(logits + row_B[:, None] + anchor_N[None, :], mask=on_path_BN, other=0.0)
                path_BN += tl.load(known_BN, mask=on_path_BN, other=0.0)
            edge_N = tl.load(parent_of + edge_N, mask=on_path_N, other=-1)
        path_BN = tl.where(known_N[None, :], path_BN, float("-inf"))
        # max drops NaN, so a label's NaN is carried by its sum
        after_BN = tl.maximum(highest_BN, path_BN)
        shift_BN = tl.where(after_BN == float("-inf"), 0.0, after_BN)
        sum_BN = sum_BN * tl.exp(highest_BN - shift_BN) + tl.exp(path_BN - shift_BN)
        highest_BN = after_BN
    return tl.where(real_N[None, :], highest_BN, 0.0) + tl.log(tl.where(real_N[None, :], sum_BN, 1.0))


@triton.jit(
    do_not_specialize=[
        "num_items", "num_dimensions", "num_contexts", "num_edges", "num_labels", "most_labels", "variants", "depth",
    ]
)  # fmt: skip
def _scores_kernel(
    logits,
    anchors,
    missing,
    multiplier,
    context_of,
    anchor_of,
    parent_of,
    leaf,
    labels,
    value,
    bias,
    temperature,
    worst,
    best,
    weight,
    reason_out,
    figures_out,
    logprob_out,
    rewards_out,
    min_mass,
    num_items,
    num_dimensions,
    num_contexts,
    num_edges,
    num_labels,
    most_labels,
    variants,
    depth,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    item_B = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    inside_B = item_B < num_items
    place_N = tl.arange(0, BLOCK_N)
    total_B = tl.zeros((BLOCK_B,), tl.float32)
    weights_B = tl.zeros((BLOCK_B,), tl.float32)
    for dimension in range(num_dimensions):
        label_N = tl.load(labels + dimension * most_labels + place_N, mask=place_N < most_labels, other=-1)
        real_N = label_N >= 0
        log_mass_BN = _log_mass(
            logits, anchors, context_of, anchor_of, parent_of, leaf, item_B, inside_B, label_N, real_N,
            num_edges, num_contexts, variants, depth,
        )  # fmt: skip
        finite_BN = tl.abs(log_mass_BN) < float("inf")  # and not NaN
        log_mass_BN = tl.where(finite_BN, log_mass_BN, 0.0)
        bias_N = tl.load(bias + label_N, mask=real_N, other=0.0)
        value_N = tl.load(value + label_N, mask=real_N, other=0.0)
        calibrated_BN = log_mass_BN / tl.load(temperature + dimension) + bias_N[None, :]
        calibrated_BN = tl.where(real_N[None, :], calibrated_BN, float("-inf"))
        shifted_BN = calibrated_BN - tl.max(calibrated_BN, axis=1)[:, None]
        logprob_BN = shifted_BN - tl.log(tl.sum(tl.exp(shifted_BN), axis=1))[:, None]
        probability_BN = tl.exp(logprob_BN)
        score_B = tl.sum(probability_BN * value_N[None, :], axis=1)
        entropy_B = -tl.sum(probability_BN * tl.where(real_N[None, :], logprob_BN, 0.0), axis=1)
        first_B = tl.max(probability_BN, axis=1)
        is_first_BN = place_N[None, :] == tl.argmax(probability_BN, axis=1)[:, None]
        margin_B = first_B - tl.max(tl.where(is_first_BN, 0.0, probability_BN), axis=1)

        reason_B = tl.full((BLOCK_B,), _PRESENT, tl.int32)
        mass_B = tl.full((BLOCK_B,), float("nan"), tl.float32)
        if anchors is not None:
            mass_B = tl.sum(tl.where(real_N[None, :], tl.exp(log_mass_BN), 0.0), axis=1)
            reason_B = tl.where(mass_B < min_mass, _LOW_MASS, reason_B)
        reason_B = tl.where(tl.min(finite_BN.to(tl.int32), axis=1) == 0, _NON_FINITE, reason_B)
        out_B = item_B.to(tl.int64) * num_dimensions + dimension
        if missing is not None:
            is_given_B = tl.load(missing + out_B, mask=inside_B, other=0) != 0
            reason_B = tl.where(is_given_B, _GIVEN, reason_B)

        present_B = reason_B == _PRESENT
        worst_end = tl.load(worst + dimension)
        normalised_B = (score_B - worst_end) / (tl.load(best + dimension) - worst_end)
        own_weight = tl.load(weight + dimension)
        total_B += tl.where(present_B, own_weight * normalised_B, 0.0)
        weights_B += tl.where(present_B, own_weight, 0.0)
        tl.store(reason_out + out_B, reason_B, mask=inside_B)
        plane = num_items.to(tl.int64) * num_dimensions
        tl.store(figures_out + out_B, tl.where(present_B, score_B, float("nan")), mask=inside_B)
        tl.store(figures_out + plane + out_B, tl.where(present_B, normalised_B, float("nan")), mask=inside_B)
        tl.store(figures_out + 2 * plane + out_B, tl.where(present_B, entropy_B, float("nan")), mask=inside_B)
        tl.store(figures_out + 3 * plane + out_B, tl.where(present_B, margin_B, float("nan")), mask=inside_B)
        kept_B = present_B | (reason_B == _LOW_MASS)
        tl.store(figures_out + 4 * plane + out_B, tl.where(kept_B, mass_B, float("nan")), mask=inside_B)
        tl.store(
            logprob_out + item_B.to(tl.int64)[:, None] * num_labels + label_N[None, :],
            tl.where(present_B[:, None], logprob_BN, float("nan")),
            mask=inside_B[:, None] & real_N[None, :],
        )
    weighed_B = weights_B > 0
    raw_reward_B = tl.where(weighed_B, total_B / tl.where(weighed_B, weights_B, 1.0), float("nan"))
    reward_B = raw_reward_B
    if multiplier is not None:
        multiplier_B = tl.load(multiplier + item_B, mask=inside_B, other=1.0)
        reward_B = tl.where(tl.abs(multiplier_B) < float("inf"), raw_reward_B * multiplier_B, float("nan"))
    tl.store(rewards_out + item_B, raw_reward_B, mask=inside_B)
    tl.store(rewards_out + num_items + item_B, reward_B, mask=inside_B)


@triton.jit(do_not_specialize=["num_items", "epsilon"])
def _groups_kernel(
    reward, group, found, size, num_items, epsilon, KIND: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr
):
    item_B = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    inside_B = item_B < num_items
    group_B = tl.load(group + item_B, mask=inside_B, other=0)
    size_B = tl.zeros((BLOCK_B,), tl.int32)
    least_B = tl.full((BLOCK_B,), float("inf"), tl.float32)
    for first in range(0, num_items, BLOCK_K):
        counted_BK, reward_BK = _group_rewards(reward, group, group_B, first, num_items, float("inf"), BLOCK_K)
        size_B += tl.sum(counted_BK.to(tl.int32), axis=1)
        least_B = tl.minimum(least_B, tl.min(reward_BK, axis=1))
    # sums are of rewards above the group's least: where all are equal, each is exactly 0
    least_B = tl.where(size_B > 0, least_B, 0.0)
    mean_above_B = tl.zeros((BLOCK_B,), tl.float32)
    for first in range(0, num_items, BLOCK_K):
        counted_BK, reward_BK = _group_rewards(reward, group, group_B, first, num_items, 0.0, BLOCK_K)
        mean_above_B += tl.sum(tl.where(counted_BK, reward_BK - least_B[:, None], 0.0), axis=1)
    mean_above_B /= tl.maximum(size_B, 1).to(tl.float32)
    square_B = tl.zeros((BLOCK_B,), tl.float32)
    for first in range(0, num_items, BLOCK_K):
        counted_BK, reward_BK = _group_rewards(reward, group, group_B, first, num_items, 0.0, BLOCK_K)
        centred_BK = tl.where(counted_BK, reward_BK - least_B[:, None] - mean_above_B[:, None], 0.0)
        square_B += tl.sum(centred_BK * centred_BK, axis=1)
    others_B = tl.maximum(size_B - 1, 1).to(tl.float32)
    std_B = tl.sqrt_rn(square_B / others_B)
    reward_B = tl.load(reward + item_B, mask=inside_B, other=0.0)
    compared_B = (size_B > 1) & (tl.abs(reward_B) < float("inf"))
    advantage_B = tl.where(compared_B, reward_B, least_B) - least_B - mean_above_B
    if KIND == "grpo":
        advantage_B = advantage_B / (std_B + epsilon)
    elif KIND == "rloo":
        advantage_B = advantage_B * size_B.to(tl.float32) / others_B
    tl.store(found + item_B, tl.where(compared_B, advantage_B, 0.0), mask=inside_B)
    tl.store(found + num_items + item_B, tl.where(size_B > 0, least_B + mean_above_B, float("nan")), mask=inside_B)
    tl.store(found + 2 * num_items + item_B, std_B, mask=inside_B)
    tl.store(size + item_B, size_B, mask=inside_B)


@triton.jit
def _group_rewards(reward, group, group_B, first, num_items, other, BLOCK_K: tl.constexpr):
    """(whether item k counts for item b, its reward where it does and `other` elsewhere), [B, K]."""
    item_K = first + tl.arange(0, BLOCK_K)
    inside_K = item_K < num_items
    reward_K = tl.load(reward + item_K, mask=inside_K, other=float("nan"))
    group_K = tl.load(group + item_K, mask=inside_K, other=0)
    present_K = tl.abs(reward_K) < float("inf")  # and not NaN
    counted_BK = (group_B[:, None] == group_K[None, :]) & present_K[None, :]
    return counted_BK, tl.where(counted_BK, reward_K[None, :], other)
