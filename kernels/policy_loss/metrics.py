"""What a policy update did, as sums that add up over micro-batches and ranks."""

from dataclasses import dataclass

import torch
import torch.distributed as dist

SUMS = (
    "tokens",  # of non-zero weight; every other sum runs over these
    "clip_low",  # tokens whose ratio fell below the bound in force
    "clip_high",  # tokens whose ratio passed the bound in force
    "dual_clip",  # tokens of negative advantage whose ratio passed the dual-clip bound
    "ratio",  # the ratio in force: the token's, or its sequence's
    "k1",  # log p_old - log p
    "k2",  # (log p_old - log p)^2 / 2
    "k3",  # p / p_old - 1 - log(p / p_old)
    "mismatch",  # |log p_old - log p_sampler|
    "mismatch_exp",  # exp |log p_old - log p_sampler|
    "sampler_weight",  # truncated importance weight, 1 without a cap
    "truncated",  # tokens whose importance weight met the cap
)


@dataclass(frozen=True)
class PolicyMetrics:
    """sums fp64 [len(SUMS)] in the order of `SUMS`; mismatch_max fp64 [], the largest |log p_old - log p_sampler|.

    k1, k2 and k3 estimate KL(p_old || p) from tokens that p_old wrote (Schulman 2020, "Approximating KL divergence").
    Without sampler log-probs the mismatch entries are 0.
    """

    sums: torch.Tensor
    mismatch_max: torch.Tensor

    @classmethod
    def zeros(cls, device: torch.device) -> "PolicyMetrics":
        """Of no token."""
        fp64 = {"dtype": torch.float64, "device": device}
        return cls(torch.zeros(len(SUMS), **fp64), torch.zeros((), **fp64))

    def __add__(self, other: "PolicyMetrics") -> "PolicyMetrics":
        """Of two micro-batches together."""
        return PolicyMetrics(self.sums + other.sums, torch.maximum(self.mismatch_max, other.mismatch_max))

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> "PolicyMetrics":
        """Over the ranks that hold different tokens. Collective."""
        sums, mismatch_max = self.sums.clone(), self.mismatch_max.clone()
        dist.all_reduce(sums, group=group)
        dist.all_reduce(mismatch_max, op=dist.ReduceOp.MAX, group=group)
        return PolicyMetrics(sums, mismatch_max)

    def means(self) -> dict[str, float]:
        """Means over the tokens under the names of `SUMS`, `tokens` itself as a count, and `mismatch_max`.

        Waits for the device. All means are 0 where there is no token.
        """
        tokens, *sums = self.sums.tolist()
        means = {name: total / max(tokens, 1.0) for name, total in zip(SUMS[1:], sums, strict=True)}
        return {"tokens": tokens, **means, "mismatch_max": self.mismatch_max.item()}
