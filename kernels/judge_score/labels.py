"""What a judge may answer: per dimension a set of labels, each one or several token sequences.

    quality = DimensionLabels("quality", labels=(((16,), (220, 16)), ((17,), (220, 17))), values=(1.0, 2.0))
    labels = JudgeLabels((quality, ...))
    labels.contexts        # the query rows of one item, in the order of hidden_ISD's second axis

A label has one or several variants (" 8" and "8"), whose probabilities add. A variant is a sequence of tokens, whose
log-probs add; every proper prefix of a variant is a context, after which the next token is asked for, with a query row
of its own: the row of the last token of (judge prompt + prefix). Labels of one token need one context, the prompt.
No variant may begin with another one of its dimension: the events are then disjoint and their masses add up to at
most 1.

The variants of a dimension form a trie: nodes are contexts, edges are tokens. Shape suffixes: I items, J dimensions,
S contexts (query rows of an item), E edges, L labels of all dimensions, D hidden.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

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
    """The dimensions of a rubric. Hashable, so that its tables (tables.py) are made once per device.

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

    @cached_property
    def edges_per_context(self) -> tuple[int, ...]:
        """[S]."""
        return tuple(sum(context == s for context, _ in self.edges) for s in range(len(self.contexts)))
