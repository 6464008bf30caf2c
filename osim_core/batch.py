"""PackedBatch: the one object that travels from the loader through the model to the losses.

A packed row holds whole documents back to back. Attention never crosses a document border
(`cu_seqlens`), rotary positions restart at each document (`positions_T`), and every loss stream brings
its own per-token weights. Rows are fixed-length, so the tail is one or more padding segments of weight 0.

Shape suffixes: T packed tokens in a row, S segments (documents, plus the padding tail if there is one).
"""

from dataclasses import dataclass, field, replace

import torch


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
    """

    tokens_T: torch.Tensor
    labels_T: torch.Tensor
    positions_T: torch.Tensor
    cu_seqlens: torch.Tensor
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    sources_S: torch.Tensor
    documents_S: torch.Tensor
    parents_S: torch.Tensor | None = None

    def __post_init__(self) -> None:
        length = self.tokens_T.shape[0]
        borders = self.cu_seqlens
        segments = borders.numel() - 1
        assert borders.dtype == torch.int32 and segments >= 1
        assert self.labels_T.shape == self.positions_T.shape == (length,)
        assert self.sources_S.shape == self.documents_S.shape == (segments,)
        assert all(weight.shape == (length,) for weight in self.weights.values())
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
        )
