"""RL algorithms as data and small functions of one group: which advantage, which surrogate, which normaliser.

    algorithm = ALGORITHMS["dapo"]
    advantages = algorithm.advantages(rewards)                 # of the replies to one prompt
    weights, scale = token_weights([12, 30], algorithm.normaliser, longest=256)

A missing reward takes no part: it is outside the group's mean and deviation, and its reply gets advantage 0 and
weight 0. A reply that is alone in its group also gets 0: there is nothing to compare it with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from osim_core.config import RLConfig
from osim_core.missing import Missing, Value
from osim_kernels.judge_score import AdvantageKind, group_advantages
from osim_kernels.policy_loss import CISPO, DAPO, GRPO, GSPO, PolicyLossConfig

Normaliser = Literal["tokens", "sequences", "constant"]


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """advantage    of a reward within its group: osim_kernels.judge_score.group_advantages
    loss            the clipped surrogate: osim_kernels.policy_loss
    normaliser      what the summed token losses of a step are divided by: all tokens (DAPO), so that long replies
                    count by their length; each reply's own length, then the number of replies (GRPO as published); or
                    a constant, longest reply x replies (Dr. GRPO), so that length has no influence
    drop_uniform    leave out groups whose rewards are all equal, and sample others in their place (DAPO's dynamic
                    sampling); otherwise they stay, with advantages of 0
    """

    advantage: AdvantageKind = "grpo"
    loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    normaliser: Normaliser = "tokens"
    drop_uniform: bool = False

    def advantages(self, rewards: Sequence[Value]) -> list[float]:
        """Of the replies to one prompt, in order."""
        present = [float("nan") if isinstance(reward, Missing) else reward for reward in rewards]
        reward_I = torch.tensor(present, dtype=torch.float64)
        groups_I = torch.zeros(len(present), dtype=torch.int64)
        return group_advantages(reward_I, groups_I, kind=self.advantage).advantage_I.tolist()


ALGORITHMS: dict[str, Algorithm] = {
    # Shao et al. 2024, arXiv 2402.03300
    "grpo": Algorithm(loss=GRPO, normaliser="sequences"),
    # Liu et al. 2025, arXiv 2503.20783: no division by the deviation, no length in the loss
    "dr-grpo": Algorithm(advantage="dr_grpo", loss=GRPO, normaliser="constant"),
    # Yu et al. 2025, arXiv 2503.14476: clip-higher, token mean, dynamic sampling
    "dapo": Algorithm(loss=DAPO, drop_uniform=True),
    # Ahmadian et al. 2024, arXiv 2402.14740
    "rloo": Algorithm(advantage="rloo", loss=GRPO),
    # Zheng et al. 2025, arXiv 2507.18071: the ratio of the sequence
    "gspo": Algorithm(loss=GSPO, normaliser="sequences"),
    # MiniMax 2025, arXiv 2506.13585: clipped weights, every token keeps its gradient
    "cispo": Algorithm(loss=CISPO, drop_uniform=True),
}


def chosen(config: RLConfig) -> Algorithm:
    """The config's algorithm with the bounds it sets. Raises ValueError for an unknown name or bounds out of range."""
    if config.algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm {config.algorithm!r} is unknown; there are {', '.join(ALGORITHMS)}")
    algorithm = ALGORITHMS[config.algorithm]
    names = ("clip_low", "clip_high", "dual_clip", "sampler_cap")
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return replace(algorithm, loss=replace(algorithm.loss, **given))


def is_uniform(rewards: Sequence[Value]) -> bool:
    """Whether a group teaches nothing: fewer than two rewards are present, or those that are present are equal."""
    present = [reward for reward in rewards if not isinstance(reward, Missing)]
    return len(present) < 2 or max(present) == min(present)


def token_weights(lengths: Sequence[int], normaliser: Normaliser, longest: int) -> tuple[list[float], float]:
    """(weight of each token of each reply, factor on every advantage) for a whole step's replies.

    lengths: policy tokens of every reply of the step that has a reward, over all ranks. The stream divides by the sum
    of its weights (loss/streams.py), which gives the token mean for weights of 1 and the mean of sequence means for
    1/length. A constant divisor longest x replies is the token mean times tokens / (longest x replies): the factor.
    """
    if normaliser == "sequences":
        return [1.0 / length if length else 0.0 for length in lengths], 1.0
    factor = sum(lengths) / (longest * len(lengths)) if normaliser == "constant" and lengths else 1.0
    return [1.0] * len(lengths), factor
