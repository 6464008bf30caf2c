"""The judges of a run: one that trains, and one of another family that only watches; both counted, both limited.

    train, held_out = (CountedJudge(judge, MissingLimit(share=0.3)) for judge in (judge, other))
    check_watcher(train, held_out)
    verdicts = train.score(items)                 # raises JudgeOutage when too much is missing
    train.metrics()                               # judge/train/items, judge/train/missing/timeout, ...

A verdict without a score is masked by whoever computes with it. When too many are, a step would learn from what is
left by chance, so the run stops, resumably, with one line.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from osim_core.judge.rubric import Judge, JudgeItem, Verdict
from osim_core.missing import Missing


class JudgeOutage(ValueError):
    """Too many verdicts are missing for the run to go on. A ValueError, because a person has to mend the judge: recipes
    end with its line and exit code 2 (osim_core/parallel/launch.py)."""


@dataclass(frozen=True, kw_only=True)
class MissingLimit:
    """share   of the latest verdicts that may be missing
    window  how many those are; the share is taken over a whole call where that has more items
    least   while fewer verdicts are known, only having none at all stops the run
    """

    share: float = 0.3
    window: int = 256
    least: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1 or self.window < 1 or self.least < 1:
            raise ValueError(f"judge limit: share lies in [0, 1), window and least are at least 1, got {self}")


class CountedJudge:
    """A judge whose verdicts are counted; itself a Judge.

    items     asked so far
    missing   verdicts without a score, by the reason of the score
    missing_dimensions  values without a number, by reason, whether or not the item has a score
    """

    def __init__(self, judge: Judge, limit: MissingLimit) -> None:
        self.judge, self.limit = judge, limit
        self.name, self.identity = judge.name, judge.identity
        self.items = 0
        self.missing: Counter[str] = Counter()
        self.missing_dimensions: Counter[str] = Counter()
        self._latest: deque[bool] = deque(maxlen=limit.window)

    def score(self, items: Sequence[JudgeItem]) -> list[Verdict]:
        """The judge's verdicts, one per item. Raises JudgeOutage when more than the limit's share is missing."""
        verdicts = self.judge.score(items)
        assert len(verdicts) == len(items), f"judge {self.name}: {len(verdicts)} verdicts for {len(items)} items"
        scores = [verdict.score for verdict in verdicts]
        failed = [score for score in scores if isinstance(score, Missing)]
        self.items += len(items)
        self.missing.update(score.reason for score in failed)
        self.missing_dimensions.update(
            value.reason for verdict in verdicts for value in verdict.values.values() if isinstance(value, Missing)
        )
        self._latest.extend(isinstance(score, Missing) for score in scores)
        self._check(len(items), failed)
        return verdicts

    def _check(self, asked: int, failed: list[Missing]) -> None:
        gone, seen = (len(failed), asked) if asked > len(self._latest) else (sum(self._latest), len(self._latest))
        if not failed or gone <= self.limit.share * seen or (seen < self.limit.least and gone < seen):
            return
        reasons = Counter(missing.reason for missing in failed)
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise JudgeOutage(
            f"judge {self.name}: {gone} of the latest {seen} items got no score, more than the limit of "
            f"{self.limit.share:.0%} (now: {listed}; {failed[-1].detail}); nothing was counted as a score. Mend the "
            "judge and resume"
        )

    def metrics(self) -> dict[str, float]:
        """Counters under `judge/<name>/`."""
        name = f"judge/{self.name}"
        counted = {f"{name}/missing/{reason}": float(count) for reason, count in self.missing.items()}
        return {f"{name}/items": float(self.items), f"{name}/missing": float(self.missing.total()), **counted}


def check_watcher(train: Judge, held_out: Judge) -> None:
    """Raises ValueError when the held-out judge is the training judge again, under any name: it would rise with it
    whatever the policy does."""
    if held_out.identity == train.identity:
        raise ValueError(
            f"judge: the held-out judge {held_out.name!r} is the training judge {train.name!r} ({train.identity}); "
            "name a model of another family"
        )
