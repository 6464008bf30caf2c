"""Which member of the clipped surrogate family: one frozen record, and the published members by name."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PolicyLossConfig:
    """Settings of `policy_loss`; `dataclasses.replace(DAPO, dual_clip=10.0)` makes variants.

    surrogate    "clip": -min(r A, clip(r) A) (Schulman et al. 2017, equation 7);
                 "cispo": -sg(clip(r)) A log p, which never drops a token's gradient (MiniMax-M1, arXiv 2506.13585,
                 equation 4)
    ratio        "token": r = p / p_old of the token; "sequence": the geometric mean over the sequence's tokens, with
                 the gradient taken per token (GSPO-token, arXiv 2507.18071, equation 14)
    clip_low     r is bounded below by 1 - clip_low, 0 < clip_low <= 1 (1: no lower bound)
    clip_high    r is bounded above by 1 + clip_high, > 0; above clip_low it is DAPO's clip-higher (arXiv 2503.14476)
    dual_clip    bound of r where the advantage is negative, > 1 (Ye et al. 2020, equation 5); None: no bound
    sampler_cap  weights each loss by min(p_old / p_sampler, cap), detached: truncated importance correction of the
                 mismatch between trainer and sampler (Yao et al. 2025); > 0; None: no weight

    Raises ValueError for a value outside these ranges.
    """

    surrogate: Literal["clip", "cispo"] = "clip"
    ratio: Literal["token", "sequence"] = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    sampler_cap: float | None = None

    def __post_init__(self) -> None:
        if self.surrogate not in ("clip", "cispo"):
            raise ValueError(f"policy loss: surrogate must be clip or cispo, got {self.surrogate!r}")
        if self.ratio not in ("token", "sequence"):
            raise ValueError(f"policy loss: ratio must be token or sequence, got {self.ratio!r}")
        if not 0 < self.clip_low <= 1:
            raise ValueError(f"policy loss: clip_low must be above 0 and at most 1, got {self.clip_low}")
        if not 0 < self.clip_high < math.inf:
            raise ValueError(f"policy loss: clip_high must be above 0 and finite, got {self.clip_high}")
        if self.dual_clip is not None and self.surrogate == "cispo":
            raise ValueError("policy loss: dual_clip belongs to the clip surrogate; cispo's weight is bounded already")
        if self.dual_clip is not None and not 1 < self.dual_clip < math.inf:
            raise ValueError(f"policy loss: dual_clip must be above 1 and finite, got {self.dual_clip}")
        if self.sampler_cap is not None and not 0 < self.sampler_cap < math.inf:
            raise ValueError(f"policy loss: sampler_cap must be above 0 and finite, got {self.sampler_cap}")

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Bounds of the ratio: (lower, upper) where the advantage is positive, (lower, upper) where it is negative.

        -min(r A, clip(r) A) is -A r with r bounded on the one side where A pushes: above for A > 0, below for A < 0.
        """
        low, high = 1.0 - self.clip_low, 1.0 + self.clip_high
        if self.surrogate == "cispo":
            return low, high, low, high
        return 0.0, high, low, math.inf if self.dual_clip is None else self.dual_clip


GRPO = PolicyLossConfig()
DAPO = PolicyLossConfig(clip_low=0.2, clip_high=0.28)
GSPO = PolicyLossConfig(ratio="sequence", clip_low=3e-4, clip_high=4e-4)
CISPO = PolicyLossConfig(surrogate="cispo", clip_low=1.0, clip_high=4.0)  # no lower bound as published; upper: ours
