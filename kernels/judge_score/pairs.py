"""Which of two replies a judge prefers, asked in both orders, so that its preference for a place cancels.

A judge sees (x, y) and then (y, x), and each time answers "first" or "second". On the log-odds scale a preference b for
the first place adds b in both orders:  l(x, y) = v + b,  l(y, x) = -v + b,  so v = (l(x, y) - l(y, x)) / 2 is free of
it, whatever b is (Zheng et al. 2023, arXiv 2306.05685, swap and average probabilities, which leaves a part of b).
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class SwappedVerdict:
    """log_odds that x is the better one; order_bias, the preference for the first place, in log-odds; of any shape."""

    log_odds: torch.Tensor
    order_bias: torch.Tensor

    @property
    def probability(self) -> torch.Tensor:
        """That x is the better one."""
        return self.log_odds.sigmoid()


def swapped_verdict(first_log_odds: torch.Tensor, second_log_odds: torch.Tensor) -> SwappedVerdict:
    """The verdict of both orders.

    first_log_odds   log P("first") - log P("second") where the judge saw (x, y): a difference of two columns of
                     `JudgeScores.label_logprob_IL`
    second_log_odds  the same where it saw (y, x); same shape

    Missing (NaN) in one order is missing. Raises ValueError for different shapes.
    """
    if first_log_odds.shape != second_log_odds.shape:
        raise ValueError(
            f"swapped verdict: one answer per order and pair, got {list(first_log_odds.shape)} and "
            f"{list(second_log_odds.shape)}"
        )
    return SwappedVerdict((first_log_odds - second_log_odds) / 2, (first_log_odds + second_log_odds) / 2)
