"""What judge_score returns. Shape suffixes: I items, J dimensions, L labels of all dimensions."""

from dataclasses import dataclass

import torch

PRESENT, GIVEN, NON_FINITE, LOW_MASS = range(4)
REASONS = ("present", "given as missing", "non-finite", "label mass below the threshold")


@dataclass(frozen=True, eq=False)
class GroupAdvantages:
    """Per item, over the items of its group whose reward is present; figures of a group in equal bits for all of it.

    advantage_I  0 for a missing reward and where fewer than two are present
    mean_I       NaN where none is present
    std_I        with n - 1 below the sum; 0 where fewer than two are present
    size_I       int32, how many are present
    """

    advantage_I: torch.Tensor
    mean_I: torch.Tensor
    std_I: torch.Tensor
    size_I: torch.Tensor


@dataclass(frozen=True, eq=False)
class JudgeScores:
    """fp32 (fp64 for fp64 inputs) unless stated. A missing score or reward is NaN, so that it cannot be averaged in.

    reason_IJ         int32, an index of REASONS; a score is present where it is 0
    label_logprob_IL  log of the calibrated probability of each label among those of its dimension; NaN where missing
    score_IJ          expected value of the label, in the units of the values; NaN where missing
    normalised_IJ     (score - worst) / (best - worst); NaN where missing
    entropy_IJ        of the calibrated distribution, in nats; NaN where missing
    margin_IJ         largest calibrated probability minus the second largest, which a single label has at 0; NaN where
                      missing
    mass_IJ           probability, over the whole vocabulary and uncalibrated, that the judge gives a label at all; kept
                      where it is too low; NaN where it was not computed, given as missing or not finite
    raw_reward_I      mean of the present normalised scores, weighted by the dimensions; NaN without a present weight
    reward_I          raw_reward times the item's multiplier; NaN also where the multiplier is not finite
    group             GroupAdvantages of reward_I, or None without groups
    """

    reason_IJ: torch.Tensor
    label_logprob_IL: torch.Tensor
    score_IJ: torch.Tensor
    normalised_IJ: torch.Tensor
    entropy_IJ: torch.Tensor
    margin_IJ: torch.Tensor
    mass_IJ: torch.Tensor
    raw_reward_I: torch.Tensor
    reward_I: torch.Tensor
    group: GroupAdvantages | None = None

    @property
    def missing_IJ(self) -> torch.Tensor:
        """bool [I, J]."""
        return self.reason_IJ != PRESENT
