"""What a judge may answer: per dimension a set of labels, each one or several token sequences, as tables for kernels.

    quality = DimensionLabels("quality", labels=(((16,), (220, 16)), ((17,), (220, 17))), values=(1.0, 2.0))
    labels = JudgeLabels((quality, ...))
    labels.contexts        # the query rows of one item, in the order of hidden_ISD's second axis

A label has one or several variants (" 8" and "8"), whose probabilities add. A variant is a sequence of tokens, whose
log-probs add; every proper prefix of a variant is a context, after which the next token is asked for, with a query row
of its own: the row of the last token of (judge prompt + prefix). Labels of one token need one context, the prompt.
No variant may begin with another one of its dimension: the events are then disjoint and their masses add up to at
most 1.

The variants of a dimension form a trie: nodes are contexts, edges are tokens. Shape suffixes: I items, J dimensions,
S contexts (query rows of an item), E edges, L labels of all dimensions, N of one, R variants of one label, D hidden.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class DimensionLabels:
    """One question of a rubric.

    name         names the dimension in messages and reports
    labels       per label its variants, each a sequence of token ids
    values       a number per label
    worst, best  ends of the scale that becomes [0, 1]; worst may lie above best. None: least and greatest value
    weight       of the dimension in an item's reward, >= 0
    temperature  > 0, and
    bias         per label, None for zeros: calibrated probabilities are softmax(log mass / temperature + bias)

    Raises ValueError for what is outside of that, for values that are not finite and for a variant that begins with
    another one.
    """

    name: str
    labels: tuple[tuple[Tokens, ...], ...]
    values: tuple[float, ...]
    worst: float | None = None
    best: float | None = None
    weight: float = 1.0
    temperature: float = 1.0
    bias: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        where = f"judge dimension {self.name!r}"
        if not self.labels or len(self.values) != len(self.labels):
            raise ValueError(f"{where}: needs one value per label, got {len(self.labels)} and {len(self.values)}")
        if self.bias is not None and len(self.bias) != len(self.labels):
            raise ValueError(f"{where}: needs one bias per label, got {len(self.bias)} for {len(self.labels)} labels")
        numbers = (*self.values, *(self.bias or ()), *self.scale, self.weight, self.temperature)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"{where}: values, bias, scale, weight and temperature must be finite")
        if self.scale[0] == self.scale[1]:
            raise ValueError(f"{where}: worst and best are both {self.scale[0]}; name the two ends of the scale")
        if self.weight < 0 or self.temperature <= 0:
            raise ValueError(
                f"{where}: weight must be at least 0 and temperature above 0, got {self.weight} and {self.temperature}"
            )
        variants = [variant for label in self.labels for variant in label]
        if not all(self.labels) or not all(variants) or any(token < 0 for token in itertools.chain(*variants)):
            raise ValueError(f"{where}: every label needs a variant, and every variant token ids of at least 0")
        for first, second in itertools.pairwise(sorted(variants)):  # sorted: a prefix stands right before an extension
            if second[: len(first)] == first:
                raise ValueError(
                    f"{where}: the variant {list(second)} begins with the variant {list(first)}; end both with the "
                    "token that closes an answer, so that their probabilities do not overlap"
                )

    @property
    def scale(self) -> tuple[float, float]:
        """(worst, best)."""
        return (
            min(self.values) if self.worst is None else self.worst,
            max(self.values) if self.best is None else self.best,
        )

    @cached_property
    def prefixes(self) -> tuple[Tokens, ...]:
        """The contexts: proper prefixes of the variants, shorter ones first, the empty one at the front."""
        found = {variant[:length] for label in self.labels for variant in label for length in range(len(variant))}
        return tuple(sorted(found, key=lambda prefix: (len(prefix), prefix)))


@dataclass(frozen=True)
class JudgeLabels:
    """The dimensions of a rubric. Hashable; the tables for kernels are made once per device.

    Raises ValueError without dimensions or when two share a name.
    """

    dimensions: tuple[DimensionLabels, ...]

    def __post_init__(self) -> None:
        names = [dimension.name for dimension in self.dimensions]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"judge dimensions need different names, at least one; got {', '.join(names) or 'none'}")

    @cached_property
    def contexts(self) -> tuple[tuple[int, Tokens], ...]:
        """[S] (dimension, tokens behind its judge prompt) of each query row of an item."""
        return tuple((j, prefix) for j, dimension in enumerate(self.dimensions) for prefix in dimension.prefixes)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """[J] where each dimension's labels lie within [L]."""
        borders = itertools.accumulate((len(dimension.labels) for dimension in self.dimensions), initial=0)
        return tuple(itertools.starmap(slice, itertools.pairwise(borders)))

    @cached_property
    def depth(self) -> int:
        """Tokens of the longest variant."""
        return max(len(variant) for dimension in self.dimensions for label in dimension.labels for variant in label)

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """[E] (context, token), those of one context together."""
        found = {
            (self.contexts.index((j, variant[:length])), variant[length])
            for j, dimension in enumerate(self.dimensions)
            for label in dimension.labels
            for variant in label
            for length in range(len(variant))
        }
        return tuple(sorted(found))

    def tables(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "LabelTables":
        """The tables on a device, numbers in `dtype`; made once."""
        return _tables(self, torch.device(device), dtype)


@dataclass(frozen=True, eq=False)
class LabelTables:
    """Integer tables are int32, `token_E` int64.

    token_E         token of each edge, ascending within a context
    context_E       its context
    parent_E        the edge before it on its path, -1 in a context that is the prompt itself
    first_edge_S    first edge of each context, [S + 1]; it is also the context's anchor (see judge_score)
    leaf_LR         last edge of each variant of each label, -1 behind the last
    label_JN        the labels of each dimension, -1 behind the last
    value_L, bias_L, temperature_J, worst_J, best_J, weight_J    see DimensionLabels
    """

    token_E: torch.Tensor
    context_E: torch.Tensor
    parent_E: torch.Tensor
    first_edge_S: torch.Tensor
    leaf_LR: torch.Tensor
    label_JN: torch.Tensor
    value_L: torch.Tensor
    bias_L: torch.Tensor
    temperature_J: torch.Tensor
    worst_J: torch.Tensor
    best_J: torch.Tensor
    weight_J: torch.Tensor


@lru_cache(maxsize=256)
def _tables(labels: JudgeLabels, device: torch.device, dtype: torch.dtype) -> LabelTables:
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

    edge_counts = [sum(context == s for context, _ in edges) for s in range(len(contexts))]
    return LabelTables(
        token_E=torch.tensor([token for _, token in edges], device=device),
        context_E=whole([context for context, _ in edges]),
        parent_E=whole([last_edge(*contexts[context]) for context, _ in edges]),
        first_edge_S=whole(list(itertools.accumulate(edge_counts, initial=0))),
        leaf_LR=whole(_padded(leaves)),
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
