"""CUDA C++: logits, scores and rewards in one launch, advantages in a second (csrc/common/judge_score.hpp).

A block owns four items: its warps make their label logits, then a thread takes each (item, dimension), then one each
item. The text is a host/device template, which the tests run on the CPU. Where ranks share the vocabulary the first
launch becomes two, around the sum of logits.

Shape suffixes: I items, J dimensions, S contexts, D hidden, V this rank's rows of the head, E edges, T tiles of at most
4 edges of one context, L labels of all dimensions, 5 figures.
"""

from functools import lru_cache

import torch
import torch.distributed as dist

from osim_kernels.judge_score.anchors import anchors_if_needed
from osim_kernels.judge_score.labels import JudgeLabels
from osim_kernels.judge_score.scores import GroupAdvantages, JudgeScores
from osim_kernels.judge_score.tables import LabelTables, label_tables

KINDS = ("grpo", "dr_grpo", "rloo")  # enum AdvantageKind
TILE_EDGES = 4


def judge_score_cuda(
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
    """The op of __init__.py; bf16, fp16 or fp32, rows of whole 16-byte units."""
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
    num_items, num_contexts = hidden_ISD.shape[:2]
    num_dimensions, num_labels = len(labels.dimensions), len(tables.value_L)
    wide = {"dtype": torch.float32, "device": hidden_ISD.device}
    logits_IE = torch.empty(num_items, len(tables.token_E), **wide)
    reason_IJ = torch.empty(num_items, num_dimensions, dtype=torch.int32, device=hidden_ISD.device)
    figures_5IJ = torch.empty(5, num_items, num_dimensions, **wide)
    logprob_IL = torch.empty(num_items, num_labels, **wide)
    rewards_2I = torch.empty(2, num_items, **wide)
    tiles_T3 = edge_tiles(labels, hidden_ISD.device)
    queries = (hidden_ISD, head_VD, tables.token_E, tiles_T3, logits_IE, vocab_start)
    judged = (
        table_arguments(tables),
        (
            None if anchor_logprob_IS is None else anchor_logprob_IS.contiguous(),
            None if missing_IJ is None else missing_IJ.contiguous().view(torch.uint8),
            None if multiplier_I is None else multiplier_I.contiguous(),
        ),
        -1.0 if min_mass is None else min_mass,
        (reason_IJ, figures_5IJ, logprob_IL, rewards_2I),
    )
    if group is None:
        _cuda().judge_items(*queries, *judged)
    else:
        _cuda().label_logits(*queries)
        dist.all_reduce(logits_IE, group=group)  # every logit is one rank's, and 0 elsewhere
        _cuda().judge_logits(logits_IE, num_contexts, *judged)
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


def group_advantages_cuda(reward_I, group_I, kind, epsilon) -> GroupAdvantages:
    found_3I = reward_I.new_empty(3, len(reward_I))
    size_I = torch.empty_like(reward_I, dtype=torch.int32)
    group_I = group_I.to(torch.int64).contiguous()
    _cuda().group_advantages(reward_I.contiguous(), group_I, KINDS.index(kind), epsilon, found_3I, size_I)
    advantage_I, mean_I, std_I = found_3I.unbind(0)
    return GroupAdvantages(advantage_I=advantage_I, mean_I=mean_I, std_I=std_I, size_I=size_I)


def table_arguments(tables: LabelTables) -> tuple[torch.Tensor, ...]:
    """In the order of the binding's tables."""
    return (
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
    )


@lru_cache(maxsize=256)
def edge_tiles(labels: JudgeLabels, device: torch.device) -> torch.Tensor:
    """int32 [T, 3]: first edge, number of edges and context of each tile (struct EdgeTile)."""
    tiles, first = [], 0
    for context, count in enumerate(labels.edges_per_context):
        tiles += [(first + at, min(TILE_EDGES, count - at), context) for at in range(0, count, TILE_EDGES)]
        first += count
    return torch.tensor(tiles, dtype=torch.int32, device=device)


def _cuda():
    try:
        from osim_core import _cuda
    except ModuleNotFoundError as error:
        raise RuntimeError("osim_core._cuda is not built: it needs nvcc when OSim Core is installed") from error
    return _cuda
