"""The Turing reward: how hard a judge finds it to tell the policy's reply from the real one.

    item = turing_item("rollout-1", context=scene, reply=reply, real=sample.reference)
    reward = turing_reward(judge.score([item])[0])

A judge asks a pairwise rubric in both orders, so that its liking for a place cancels, and p, the verdict's score, is
its belief that the policy's reply is the real one. The reward is min(1, 2 p) in [0, 1]: 1 where the judge cannot tell
or errs, 0 where it is sure and right. Capped, since to seem more human than people is caricature, not likeness.

A judge that saw places and not texts would give p = 1/2, the full reward, so such a verdict is Missing("order bias"):
one whose two answers name the same place, or with log-odds for a place beyond MOST_BIAS.
"""

import math

from osim_core.judge.rubric import JudgeItem, Verdict
from osim_core.missing import Missing, Value

RUBRIC = "turing_pair"
MOST_BIAS = math.log(19.0)  # 95 % for one place between equal replies


def turing_item(name: str, *, context: str, reply: str, real: str) -> JudgeItem:
    """The pair. Raises ValueError without a real reply to compare with."""
    if not real.strip():
        raise ValueError(f"turing: {name} has no real reply")
    return JudgeItem(id=name, rubric=RUBRIC, context=context, reply=reply, other=real)


def turing_reward(verdict: Verdict) -> Value:
    """The reward from the verdict of a `turing_item`; Missing where it is, or says nothing about the texts."""
    if isinstance(verdict.score, Missing):
        return verdict.score
    for name, figures in verdict.details.items():
        if figures.get("agree", 1.0) == 0.0:
            return Missing("order bias", f"{name}: the same place in both orders")
        if abs(bias := figures.get("order_bias", 0.0)) > MOST_BIAS:
            return Missing("order bias", f"{name}: log-odds {bias:.2f} for the first place")
    return min(1.0, 2.0 * verdict.score)
