"""Judge prompts as packed trees: what prompts have in common is held, and computed, once.

A path is the parts of one prompt: rubric, context, reply, question. Paths that begin alike share those segments of the
row, and the tokens of a label that has several of them hang below the question, one segment a token. The query row of
a prompt is the last token of its path.

    rubric - context - reply 1 - question 1
                     |         + question 2
                     + reply 2 - ...

8 replies of 300 tokens to 1,200 shared ones, with 3 questions of 60, are 37,440 tokens unshared and 5,040 as a tree.

Shape suffixes: T tokens of a row, S its segments; I calls (an item in one order), and in rows_IS query rows of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from osim_core.batch import PackedBatch

Tokens = tuple[int, ...]
Path = tuple[Tokens, ...]


@dataclass
class Tree:
    """Segments of one row, each with the one that it continues; grows by `add`."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    _ends: list[int] = field(default_factory=list)  # position behind each segment in its own sequence
    _last: list[int] = field(default_factory=list)  # row of each segment's last token
    _known: dict[tuple[int, Tokens], int] = field(default_factory=dict)

    def cost(self, paths: Sequence[Path]) -> int:
        """Tokens that these paths would add."""
        fresh: dict[Path, int] = {}
        for path in paths:
            node = -1
            for depth, part in enumerate(path):
                if not part:
                    continue
                node = self._known.get((node, part), -2) if node != -2 else -2
                if node == -2:
                    fresh[path[: depth + 1]] = len(part)
        return sum(fresh.values())

    def add(self, path: Path) -> int:
        """Hold the path; returns the row of its last token. Empty parts are left out."""
        node = -1
        for part in filter(len, path):
            if (node, part) not in self._known:
                start = self._ends[node] if node >= 0 else 0
                self.tokens += part
                self.positions += range(start, start + len(part))
                self.lengths.append(len(part))
                self.parents.append(node)
                self._ends.append(start + len(part))
                self._last.append(len(self.tokens) - 1)
                self._known[node, part] = len(self.lengths) - 1
            node = self._known[node, part]
        return self._last[node]

    def batch(self, multiple: int = 1) -> PackedBatch:
        """The row, padded to a multiple of `multiple` tokens."""
        padding = -len(self.tokens) % multiple
        segments = len(self.lengths)
        tokens_T = torch.tensor(self.tokens + [0] * padding, dtype=torch.int64)
        rest = [padding] if padding else []
        return PackedBatch(
            tokens_T=tokens_T,
            labels_T=torch.zeros_like(tokens_T),
            positions_T=torch.tensor([*self.positions, *range(padding)], dtype=torch.int64),
            cu_seqlens=torch.from_numpy(np.cumsum([0, *self.lengths, *rest], dtype=np.int32)),
            sources_S=torch.tensor([0] * segments + [-1] * len(rest), dtype=torch.int32),
            documents_S=torch.tensor([*range(segments)] + [-1] * len(rest), dtype=torch.int64),
            parents_S=torch.tensor([*self.parents] + [-1] * len(rest), dtype=torch.int32),
        )


@dataclass(frozen=True)
class TreeRow:
    """A row, how many of its tokens are not padding, the calls that it holds, and rows_IS, int64, their query rows."""

    batch: PackedBatch
    tokens: int
    members: list[int]
    rows_IS: torch.Tensor


def pack_trees(paths: Sequence[Sequence[Path]], most: int, multiple: int = 1) -> list[TreeRow]:
    """Rows of at most `most` tokens that hold the paths of every call; a call is never divided.

    Calls are taken in the order of their paths, so that those that share a prefix meet in a row. Raises ValueError for
    a call that does not fit a row alone: callers sort those out before.
    """
    rows: list[TreeRow] = []
    tree, members, queries = Tree(), [], []

    def close() -> None:
        if members:
            rows.append(TreeRow(tree.batch(multiple), len(tree.tokens), members, torch.tensor(queries)))

    for index in sorted(range(len(paths)), key=lambda i: paths[i]):
        if members and len(tree.tokens) + tree.cost(paths[index]) > most:
            close()
            tree, members, queries = Tree(), [], []
        if not members and tree.cost(paths[index]) > most:
            raise ValueError(f"judge: a prompt tree of {tree.cost(paths[index])} tokens does not fit a row of {most}")
        queries.append([tree.add(path) for path in paths[index]])
        members.append(index)
    close()
    return rows
