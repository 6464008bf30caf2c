"""Groups: several replies to one prompt as one packed row that holds the prompt once.

    row = shared_prompt_row([Group(prompt, replies, weights)], sequence_length=8192, stream="policy")

A GRPO group of 8 replies of 500 tokens to a prompt of 2,000 is 8 * 2,500 = 20,000 tokens unshared and
1,999 + 8 * 501 = 6,007 shared. Attention (`parents_S`) and positions make it the same computation: loss and gradients
equal those of eight separate documents.

The prompt's last token predicts the first token of every reply, and each reply has its own label for it. It therefore
opens each reply's segment, and the prompt's segment ends before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from osim_core.batch import PackedBatch


@dataclass(frozen=True)
class Group:
    """Replies sampled from one prompt.

    prompt   its token ids, at least one
    replies  token ids of each reply, at least one each
    weights  per reply, the loss weight of each of its tokens
    source   index into the run's source names
    id       global id of the prompt
    """

    prompt: Sequence[int]
    replies: Sequence[Sequence[int]]
    weights: Sequence[Sequence[float]]
    source: int = 0
    id: int = 0

    def __post_init__(self) -> None:
        if not len(self.prompt) or not len(self.replies) or not all(map(len, self.replies)):
            raise ValueError(f"group {self.id}: a prompt and every reply need at least one token")
        if list(map(len, self.replies)) != list(map(len, self.weights)):
            raise ValueError(f"group {self.id}: every reply token needs one loss weight")

    @property
    def num_tokens(self) -> int:
        """Tokens of a row that this group takes."""
        return len(self.prompt) - 1 + sum(1 + len(reply) for reply in self.replies)


def shared_prompt_row(groups: Sequence[Group], sequence_length: int, stream: str) -> PackedBatch:
    """One row of `sequence_length` tokens with these groups and `stream`'s weights; the rest is padding.

    Raises ValueError when the groups are longer than the row.
    """
    used = sum(group.num_tokens for group in groups)
    if used > sequence_length:
        raise ValueError(f"{len(groups)} groups of {used} tokens do not fit a row of {sequence_length}")
    row = _Row([], [], [], [], [], [], [], [])
    for group in groups:
        prompt, shared = list(group.prompt), len(group.prompt) - 1
        parent = row.add(prompt[:-1], prompt[1:], [0.0] * shared, 0, -1, group)
        for reply, weights in zip(group.replies, group.weights, strict=True):
            row.add([prompt[-1], *reply], [*reply, 0], [*weights, 0.0], shared, parent, group)
    if used < sequence_length:
        zeros = [0] * (sequence_length - used)
        row.add(zeros, zeros, zeros, 0, -1, None)
    return PackedBatch(
        tokens_T=torch.tensor(row.tokens, dtype=torch.int64),
        labels_T=torch.tensor(row.labels, dtype=torch.int64),
        positions_T=torch.tensor(row.positions, dtype=torch.int64),
        cu_seqlens=torch.from_numpy(np.cumsum([0, *row.lengths], dtype=np.int32)),
        weights={stream: torch.tensor(row.weights, dtype=torch.float32)},
        sources_S=torch.tensor(row.sources, dtype=torch.int32),
        documents_S=torch.tensor(row.documents, dtype=torch.int64),
        parents_S=torch.tensor(row.parents, dtype=torch.int32),
    )


@dataclass
class _Row:
    """A row under construction, one list a field of PackedBatch."""

    tokens: list[int]
    labels: list[int]
    weights: list[float]
    positions: list[int]
    lengths: list[int]
    parents: list[int]
    sources: list[int]
    documents: list[int]

    def add(self, tokens, labels, weights, first_position: int, parent: int, group: Group | None) -> int:
        """Append a segment; returns its index."""
        self.tokens += tokens
        self.labels += labels
        self.weights += weights
        self.positions += range(first_position, first_position + len(tokens))
        self.lengths.append(len(tokens))
        self.parents.append(parent)
        self.sources.append(group.source if group else -1)
        self.documents.append(group.id if group else -1)
        return len(self.lengths) - 1
