"""PackedBatch: the one object that travels from the loader through the model to the losses.

A packed row holds whole documents back to back. Attention never crosses a document border
(`cu_seqlens`), rotary positions restart at each document (`positions_T`), and every loss stream brings
its own per-token weights. Rows are fixed-length, so the tail is one or more padding segments of weight 0.

Shape suffixes: T packed tokens in a row, S segments (documents, plus the padding tail if there is one).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import torch


@dataclass(frozen=True, kw_only=True)
class PolicyColumns:
    """What the policy and kl streams read of each token beside its weight, float32 [T] each.

    Like a weight, entry t is about predicting labels_T[t]; where both weights are 0 the entries are never read, so they
    may hold anything.

    advantages_T          of the reply that the token belongs to
    sampler_logprobs_T    the rollout engine's log p of the token when it was sampled
    old_logprobs_T        the trainer's log p under the weights that the step's first update starts from; None: this
                          update is that first one, so its own log p, held constant, is meant
    reference_logprobs_T  log p under the reference model, for the kl stream; None where there is no such stream
    """

    advantages_T: torch.Tensor
    sampler_logprobs_T: torch.Tensor
    old_logprobs_T: torch.Tensor | None = None
    reference_logprobs_T: torch.Tensor | None = None

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "PolicyColumns":
        """`function` of every column that is there."""
        columns = ((f.name, getattr(self, f.name)) for f in fields(self))
        return PolicyColumns(**{name: None if x_T is None else function(x_T) for name, x_T in columns})


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One packed row.

    tokens_T     int64 [T]; padding is token 0
    labels_T     int64 [T]; the next token of the same document; 0 where there is none
    positions_T  int64 [T]; offset inside the document
    cu_seqlens   int32 [S+1]; segment borders: starts at 0, never decreases, ends at T
    weights      stream name ("ce", "policy", "kl") -> float32 [T]; the weight of predicting labels_T[t]
    sources_S    int32 [S]; index into the manifest's source names; -1 for padding
    documents_S  int64 [S]; global document id, so a batch can be traced to rows of the corpus; -1 for padding
    parents_S    int32 [S], or None where no segment has one: the earlier segment that this one continues, -1 for none.
                 A segment sees its parent's whole content (and the parent's parent's) as if it stood before its own,
                 so that replies to one prompt hold it once; positions_T go on from the parent's
    policy       columns of the policy and kl streams, or None where neither has a weight
    """

    tokens_T: torch.Tensor
    labels_T: torch.Tensor
    positions_T: torch.Tensor
    cu_seqlens: torch.Tensor
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    sources_S: torch.Tensor
    documents_S: torch.Tensor
    parents_S: torch.Tensor | None = None
    policy: PolicyColumns | None = None

    def __post_init__(self) -> None:
        length = self.tokens_T.shape[0]
        borders = self.cu_seqlens
        segments = borders.numel() - 1
        assert borders.dtype == torch.int32 and segments >= 1
        assert self.labels_T.shape == self.positions_T.shape == (length,)
        assert self.sources_S.shape == self.documents_S.shape == (segments,)
        assert all(weight.shape == (length,) for weight in self.weights.values())
        if self.policy is not None:
            self.policy.map(lambda column_T: _assert_column(column_T, length))
        assert self.parents_S is None or (self.parents_S.shape, self.parents_S.dtype) == ((segments,), torch.int32)
        if borders.device.type == "cpu":  # reading borders on a GPU would stall the stream
            assert borders[0] == 0 and borders[-1] == length and bool((borders.diff() >= 0).all()), borders

    @property
    def num_tokens(self) -> int:
        """Tokens in the row, padding included."""
        return self.tokens_T.shape[0]

    def to(self, device: torch.device) -> "PackedBatch":
        """The same row on another device (non-blocking where the source is pinned)."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            tokens_T=move(self.tokens_T),
            labels_T=move(self.labels_T),
            positions_T=move(self.positions_T),
            cu_seqlens=move(self.cu_seqlens),
            weights={name: move(weight) for name, weight in self.weights.items()},
            sources_S=move(self.sources_S),
            documents_S=move(self.documents_S),
            parents_S=None if self.parents_S is None else move(self.parents_S),
            policy=self.policy and self.policy.map(move),
        )


def _assert_column(column_T: torch.Tensor, length: int) -> torch.Tensor:
    assert (column_T.shape, column_T.dtype) == ((length,), torch.float32), (column_T.shape, column_T.dtype)
    return column_T
