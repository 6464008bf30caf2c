"""A result that could not be had. A failure is never a score: whoever computes with values masks and counts these.

`Value` crosses module borders wherever a number may be missing: judges, rewards, rollouts, tasks, metrics.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Missing:
    """reason: a fixed word or two per kind of failure, by which it is counted; detail: what a person wants to know."""

    reason: str
    detail: str = ""


Value = float | Missing
