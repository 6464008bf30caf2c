"""Only rows of non-zero weight are computed: select them, compute, put the results back.

Shape suffixes: T tokens, N tokens of non-zero weight, D hidden.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ActiveRows:
    """The N of T rows that are computed: their indices, or None for all; and whether the caller's N was right, or None
    where N was counted."""

    num_tokens: int
    rows_N: torch.Tensor | None = None
    right: torch.Tensor | None = None

    @classmethod
    def of(cls, weights_T: torch.Tensor | None, active_rows: int | None, num_tokens: int) -> "ActiveRows":
        """The rows of non-zero weight. Without `active_rows` a GPU is synchronised once, to learn N. With it nothing
        is: a wrong number raises ValueError on the CPU, and on a GPU turns every result into NaN, which the non-finite
        guard stops."""
        if active_rows is not None and (weights_T is None or not 0 <= active_rows <= num_tokens):
            raise ValueError(f"active_rows counts non-zero weights_T of {num_tokens} rows, got {active_rows}")
        if weights_T is None:
            return cls(num_tokens)
        active_T = weights_T != 0
        if active_rows is None:
            right, rows_N = None, active_T.nonzero()[:, 0]
        else:
            right = active_T.count_nonzero() == active_rows
            if right.device.type == "cpu" and not right:
                raise ValueError(f"active_rows is {active_rows}, but {int(active_T.count_nonzero())} weights are not 0")
            rows_N = active_T.nonzero_static(size=active_rows, fill_value=0)[:, 0]
        return cls(num_tokens, None if rows_N.numel() == num_tokens else rows_N, right)

    def select(self, x: torch.Tensor) -> torch.Tensor:
        """[T, ...] to [N, ...]."""
        return x if self.rows_N is None else x.index_select(0, self.rows_N)

    def put_back(self, values_N: torch.Tensor) -> torch.Tensor:
        """[N] to [T], zero elsewhere."""
        if self.right is not None:
            values_N = values_N.where(self.right, torch.nan)
        if self.rows_N is None:
            return values_N
        return values_N.new_zeros(self.num_tokens).index_copy(0, self.rows_N, values_N)


def on_active_rows(
    compute: Callable,
    hidden_TD: torch.Tensor,
    targets_T: torch.Tensor,
    weights_T: torch.Tensor | None,
    active_rows: int | None,
    vocab_size: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """compute(hidden_ND, targets_N) -> (logprob_N, entropy_N or None), with zeros put where the weight is 0.

    Raises ValueError as ActiveRows.of, and on the CPU for a target outside the vocabulary.
    """
    active = ActiveRows.of(weights_T, active_rows, hidden_TD.shape[0])
    targets_N = active.select(targets_T)
    _check_targets(targets_N, vocab_size)
    logprob_N, entropy_N = compute(active.select(hidden_TD), targets_N)
    return active.put_back(logprob_N), None if entropy_N is None else active.put_back(entropy_N)


def _check_targets(targets_N: torch.Tensor, vocab_size: int) -> None:
    if targets_N.device.type == "cpu" and targets_N.numel():  # on a GPU it would synchronise
        low, high = targets_N.aminmax()
        if low < 0 or high >= vocab_size:
            raise ValueError(f"target ids {int(low)}..{int(high)} leave the vocabulary of {vocab_size} tokens")
