"""The trie of label tokens as tensors, for kernels to look up. Made once per rubric and device.

Shape suffixes: S contexts, E edges, J dimensions, L labels of all dimensions, N of one, R variants of one label.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from osim_kernels.judge_score.labels import JudgeLabels, Tokens


@dataclass(frozen=True, eq=False)
class LabelTables:
    """Integer tables are int32, `token_E` int64. `depth` is the number of tokens of the longest variant.

    token_E         token of each edge, ascending within a context
    context_E, anchor_E   its context, and the first edge of that one, which is its anchor (anchors.py)
    parent_E        the edge before it on its path, -1 in a context that is the prompt itself
    first_edge_S    first edge of each context, [S + 1]
    leaf_LR         last edge of each variant of each label, -1 behind the last
    label_JN        the labels of each dimension, -1 behind the last
    dimension_L, place_L   the dimension of each label, and its place among that one's labels
    value_L, bias_L, temperature_J, worst_J, best_J, weight_J    see DimensionLabels
    """

    depth: int
    token_E: torch.Tensor
    context_E: torch.Tensor
    anchor_E: torch.Tensor
    parent_E: torch.Tensor
    first_edge_S: torch.Tensor
    leaf_LR: torch.Tensor
    label_JN: torch.Tensor
    dimension_L: torch.Tensor
    place_L: torch.Tensor
    value_L: torch.Tensor
    bias_L: torch.Tensor
    temperature_J: torch.Tensor
    worst_J: torch.Tensor
    best_J: torch.Tensor
    weight_J: torch.Tensor


@lru_cache(maxsize=256)
def label_tables(labels: JudgeLabels, device: torch.device, dtype: torch.dtype = torch.float32) -> LabelTables:
    """The tables of `labels` on a device, numbers in `dtype`; made once."""
    dimensions, contexts, edges = labels.dimensions, labels.contexts, labels.edges
    edge_of = {edge: number for number, edge in enumerate(edges)}
    context_of = {context: number for number, context in enumerate(contexts)}

    def last_edge(j: int, tokens: Tokens) -> int:
        return edge_of[context_of[j, tokens[:-1]], tokens[-1]] if tokens else -1

    leaves = [
        [last_edge(j, variant) for variant in label]
        for j, dimension in enumerate(dimensions)
        for label in dimension.labels
    ]

    def whole(numbers: Sequence) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=device)

    def real(numbers: Sequence[float]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=dtype, device=device)

    first_edges = list(itertools.accumulate(labels.edges_per_context, initial=0))
    return LabelTables(
        depth=labels.depth,
        token_E=torch.tensor([token for _, token in edges], device=device),
        context_E=whole([context for context, _ in edges]),
        anchor_E=whole([first_edges[context] for context, _ in edges]),
        parent_E=whole([last_edge(*contexts[context]) for context, _ in edges]),
        first_edge_S=whole(first_edges),
        leaf_LR=whole(_padded(leaves)),
        dimension_L=whole([j for j, part in enumerate(labels.slices) for _ in range(part.start, part.stop)]),
        place_L=whole([label - part.start for part in labels.slices for label in range(part.start, part.stop)]),
        label_JN=whole(_padded([list(range(part.start, part.stop)) for part in labels.slices])),
        value_L=real([value for dimension in dimensions for value in dimension.values]),
        bias_L=real([b for d in dimensions for b in d.bias or (0.0,) * len(d.labels)]),
        temperature_J=real([dimension.temperature for dimension in dimensions]),
        worst_J=real([dimension.scale[0] for dimension in dimensions]),
        best_J=real([dimension.scale[1] for dimension in dimensions]),
        weight_J=real([dimension.weight for dimension in dimensions]),
    )


def _padded(rows: list[list[int]]) -> list[list[int]]:
    width = max(map(len, rows))
    return [row + [-1] * (width - len(row)) for row in rows]
