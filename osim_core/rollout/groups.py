"""Groups: several replies to one prompt as one packed row that holds the prompt once.

    rows = pack_groups(groups, 8192, "policy")          # as many rows as they need
    row = shared_prompt_row([Group(prompt, replies, weights)], 8192, "policy")

A GRPO group of 8 replies of 500 tokens to a prompt of 2,000 is 8 * 2,500 = 20,000 tokens unshared and
1,999 + 8 * 501 = 6,007 shared. Attention (`parents_S`) and positions make it the same computation: loss and gradients
equal those of eight separate documents.

The prompt's last token predicts the first token of every reply, and each reply has its own label for it. It therefore
opens each reply's segment, and the prompt's segment ends before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from osim_core.batch import PackedBatch, PolicyColumns
from osim_core.corpus.pack import pack_documents


@dataclass(frozen=True)
class Group:
    """Replies sampled from one prompt.

    prompt   its token ids, at least one
    replies  token ids of each reply, at least one each
    weights  per reply, the loss weight of each of its tokens; tokens that others wrote have 0
    advantages  per reply; needed for the policy stream, as are
    logprobs    per reply, the sampler's log-prob of each of its tokens (anything where the weight is 0)
    source   index into the run's source names
    id       global id of the prompt
    """

    prompt: Sequence[int]
    replies: Sequence[Sequence[int]]
    weights: Sequence[Sequence[float]]
    source: int = 0
    id: int = 0
    advantages: Sequence[float] | None = None
    logprobs: Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        if not len(self.prompt) or not len(self.replies) or not all(map(len, self.replies)):
            raise ValueError(f"group {self.id}: a prompt and every reply need at least one token")
        if list(map(len, self.replies)) != list(map(len, self.weights)):
            raise ValueError(f"group {self.id}: every reply token needs one loss weight")
        if (self.advantages is None) != (self.logprobs is None):
            raise ValueError(f"group {self.id}: advantages and log-probs come together")
        if self.advantages is not None and (
            len(self.advantages) != len(self.replies) or list(map(len, self.logprobs)) != list(map(len, self.replies))
        ):
            raise ValueError(f"group {self.id}: every reply needs an advantage, and every token of it one log-prob")

    @property
    def num_tokens(self) -> int:
        """Tokens of a row that this group takes."""
        return len(self.prompt) - 1 + sum(1 + len(reply) for reply in self.replies)

    def split(self, most: int) -> list["Group"]:
        """The same replies as groups of at most `most` tokens each; the prompt is held once in every one.

        Raises ValueError for a reply that is too long even alone.
        """
        room, parts = most - (len(self.prompt) - 1), [[]]
        free = room
        for index, reply in enumerate(self.replies):
            need = 1 + len(reply)
            if need > room:
                raise ValueError(
                    f"group {self.id}: a prompt of {len(self.prompt)} and a reply of {len(reply)} tokens do not fit a "
                    f"row of {most}; raise the row's length or lower the longest reply"
                )
            if need > free:
                parts.append([])
                free = room
            parts[-1].append(index)
            free -= need
        return [self._part(indices) for indices in parts]

    def _part(self, indices: list[int]) -> "Group":
        def pick(values):
            return None if values is None else [values[index] for index in indices]

        return replace(
            self,
            replies=pick(self.replies),
            weights=pick(self.weights),
            advantages=pick(self.advantages),
            logprobs=pick(self.logprobs),
        )


def pack_groups(groups: Sequence[Group], sequence_length: int, *streams: str) -> list[PackedBatch]:
    """Rows that hold all groups, each prompt once a row; best fit decreasing. Groups longer than a row are split.

    Raises ValueError for a prompt and reply that do not fit a row together.
    """
    parts = [part for group in groups for part in group.split(sequence_length)]
    plan = pack_documents([part.num_tokens for part in parts], sequence_length)
    return [shared_prompt_row([parts[i] for i in plan[row]], sequence_length, *streams) for row in range(len(plan))]


def padding_row(sequence_length: int, *streams: str, policy: bool) -> PackedBatch:
    """A row of nothing, for a rank with fewer rows than the others; `policy` gives it that stream's columns."""
    zeros_T = torch.zeros(sequence_length)
    return PackedBatch(
        tokens_T=zeros_T.long(),
        labels_T=zeros_T.long(),
        positions_T=torch.arange(sequence_length),
        cu_seqlens=torch.tensor([0, sequence_length], dtype=torch.int32),
        weights=dict.fromkeys(streams, zeros_T),
        sources_S=torch.tensor([-1], dtype=torch.int32),
        documents_S=torch.tensor([-1]),
        policy=PolicyColumns(advantages_T=zeros_T, sampler_logprobs_T=zeros_T) if policy else None,
    )


def shared_prompt_row(groups: Sequence[Group], sequence_length: int, *streams: str) -> PackedBatch:
    """One row of `sequence_length` tokens with these groups, every stream of the same weights; the rest is padding.

    It has the policy's columns if the groups have advantages. Raises ValueError when the groups are longer than the
    row, or only some have advantages.
    """
    used = sum(group.num_tokens for group in groups)
    if used > sequence_length:
        raise ValueError(f"{len(groups)} groups of {used} tokens do not fit a row of {sequence_length}")
    if len({group.advantages is None for group in groups}) > 1:
        raise ValueError("groups with and without advantages do not share a row")
    row = _Row([], [], [], [], [], [], [], [], [], [])
    for group in groups:
        prompt, shared = list(group.prompt), len(group.prompt) - 1
        parent = row.add(prompt[:-1], prompt[1:], [0.0] * shared, 0, -1, group)
        for index, (reply, weights) in enumerate(zip(group.replies, group.weights, strict=True)):
            row.add([prompt[-1], *reply], [*reply, 0], [*weights, 0.0], shared, parent, group, index)
    if used < sequence_length:
        zeros = [0] * (sequence_length - used)
        row.add(zeros, zeros, zeros, 0, -1, None)
    return PackedBatch(
        tokens_T=torch.tensor(row.tokens, dtype=torch.int64),
        labels_T=torch.tensor(row.labels, dtype=torch.int64),
        positions_T=torch.tensor(row.positions, dtype=torch.int64),
        cu_seqlens=torch.from_numpy(np.cumsum([0, *row.lengths], dtype=np.int32)),
        weights=dict.fromkeys(streams, torch.tensor(row.weights, dtype=torch.float32)),
        sources_S=torch.tensor(row.sources, dtype=torch.int32),
        documents_S=torch.tensor(row.documents, dtype=torch.int64),
        parents_S=torch.tensor(row.parents, dtype=torch.int32),
        policy=PolicyColumns(
            advantages_T=torch.tensor(row.advantages, dtype=torch.float32),
            sampler_logprobs_T=torch.tensor(row.logprobs, dtype=torch.float32),
        )
        if groups and groups[0].advantages is not None
        else None,
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
    advantages: list[float]
    logprobs: list[float]

    def add(
        self, tokens, labels, weights, first_position: int, parent: int, group: Group | None, reply: int | None = None
    ) -> int:
        """Append a segment, `reply` of the group or its prompt; returns the segment's index."""
        self.tokens += tokens
        self.labels += labels
        self.weights += weights
        self.positions += range(first_position, first_position + len(tokens))
        self.lengths.append(len(tokens))
        self.parents.append(parent)
        self.sources.append(group.source if group else -1)
        self.documents.append(group.id if group else -1)
        learned = group is not None and reply is not None and group.advantages is not None
        self.advantages += [group.advantages[reply] if learned else 0.0] * len(tokens)
        self.logprobs += [*group.logprobs[reply], 0.0] if learned else [0.0] * len(tokens)
        return len(self.lengths) - 1
