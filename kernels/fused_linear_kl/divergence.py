"""The three divergences: their names, their formulas over log-probabilities, and sums that can be cut into tiles.

With teacher P, student Q and M = beta P + (1 - beta) Q (Agarwal et al., arXiv 2306.13649, section 3):

    forward   KL(P || Q)
    reverse   KL(Q || P)
    jsd       beta KL(P || M) + (1 - beta) KL(Q || M)

Statistics of a row over any set of columns are five numbers about a leading distribution `l` and another `o`, given by
their logits: (m_l, s_l, m_o, s_o, u), with m a maximum, s = sum exp(z - m) and
u = sum exp(z_l - m_l) ((z_l - m_l) - (z_o - m_o)). Then KL(l || o) = u / s_l - log s_l + log s_o: a difference of small
numbers even where logits are near 1e4. Tiles, splits and ranks are all joined by `merge`.

Shape suffixes: N tokens, W parts (tiles, splits or ranks) of the vocabulary, 5 statistics.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

LOWEST = -1e30  # below any logit, yet finite: (LOWEST - maximum) * 0 must be 0 and not NaN


@dataclass(frozen=True)
class Divergence:
    """kind: "forward", "reverse" or "jsd"; beta: the teacher's share of the mixture, for "jsd" alone."""

    kind: Literal["forward", "reverse", "jsd"]
    beta: float

    def __post_init__(self) -> None:
        if self.kind not in ("forward", "reverse", "jsd"):
            raise ValueError(f"divergence must be forward, reverse or jsd, got {self.kind!r}")
        if self.kind == "jsd" and not 0 < self.beta < 1:
            raise ValueError(f"beta must lie between 0 and 1, got {self.beta}; its limits are forward and reverse")

    @property
    def student_leads(self) -> bool:
        """Which distribution the one-pass statistics weight by."""
        return self.kind == "reverse"


@dataclass(frozen=True)
class Scaling:
    """From a product to a logit: cap * tanh(x / cap) where there is a cap, then divided by the temperature."""

    temperature: float
    softcap: float | None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"softcap must be above 0, got {self.softcap}")


def no_statistics(num_rows: int, like: torch.Tensor) -> torch.Tensor:
    """[5, N]: statistics of no column at all, in at least fp32."""
    wide = torch.promote_types(like.dtype, torch.float32)
    lowest, nothing = (torch.full((num_rows,), x, dtype=wide, device=like.device) for x in (LOWEST, 0.0))
    return torch.stack((lowest, nothing, lowest, nothing, nothing))


def merge(parts_W5N: torch.Tensor) -> torch.Tensor:
    """[5, N]: statistics over the union of the parts' columns."""
    lead_WN, lead_sum_WN, other_WN, other_sum_WN, moment_WN = parts_W5N.unbind(1)
    lead_N, other_N = lead_WN.amax(dim=0), other_WN.amax(dim=0)
    lead_shift_WN, other_shift_WN = lead_WN - lead_N, other_WN - other_N
    lead_decay_WN = lead_shift_WN.exp()
    moment_N = (lead_decay_WN * (moment_WN + lead_sum_WN * (lead_shift_WN - other_shift_WN))).sum(dim=0)
    lead_sum_N = (lead_decay_WN * lead_sum_WN).sum(dim=0)
    return torch.stack((lead_N, lead_sum_N, other_N, (other_shift_WN.exp() * other_sum_WN).sum(dim=0), moment_N))


def log_mixture(log_p: torch.Tensor, log_q: torch.Tensor, beta: float) -> torch.Tensor:
    """log(beta p + (1 - beta) q)."""
    return torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))


def logit_slope(divergence: Divergence, log_p, log_q, extra_N1) -> torch.Tensor:
    """d divergence / d student logit, of the whole vocabulary or any columns of it.

    extra_N1: [N, 1], KL(Q || P) for "reverse", KL(Q || M) for "jsd", unused for "forward".
    """
    q = log_q.exp()
    if divergence.kind == "forward":
        return q - log_p.exp()
    if divergence.kind == "reverse":
        return q * (log_q - log_p - extra_N1)
    return (1 - divergence.beta) * q * (log_q - log_mixture(log_p, log_q, divergence.beta) - extra_N1)


def divergence_of(divergence: Divergence, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """The divergence over the last dimension, by autograd differentiable in log_q.

    log_p and log_q may be -inf where both are (an empty bucket); an outcome of probability 0 contributes 0.
    """
    p_real, q_real = log_p > -torch.inf, log_q > -torch.inf
    log_p, log_q = log_p.where(p_real, 0.0), log_q.where(q_real, 0.0)
    p, q = log_p.exp() * p_real, log_q.exp() * q_real
    if divergence.kind == "forward":
        return (p * (log_p - log_q)).sum(dim=-1)
    if divergence.kind == "reverse":
        return (q * (log_q - log_p)).sum(dim=-1)
    log_m = log_mixture(log_p.where(p_real, LOWEST), log_q.where(q_real, LOWEST), divergence.beta)
    beta = divergence.beta
    return (beta * p * (log_p - log_m) + (1 - beta) * q * (log_q - log_m)).sum(dim=-1)
