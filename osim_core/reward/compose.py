"""From parts to the reward that is trained on, with a record of every step on the way.

    composition = Composition("next_turn", (Part("judge", 0.7), Part("likelihood", 0.3, optional=True)))
    records = compose(composition, {"rollout-1": {"judge": 0.8, "likelihood": Missing("timeout")}}, findings)
    reward = records["rollout-1"].final

One scale per task: every part is mapped from its declared range to [0, 1], the weights sum to 1, detectors multiply
by at most 1, and so every branch (draft, refined, penalised) ends in [0, 1] and compares. What was adjusted, and by
what, stays in the record, which goes into the transcript: a detector that flags without the reward moving is a defect,
and the record shows it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from osim_core.missing import Missing, Value
from osim_core.reward.detectors import Finding


@dataclass(frozen=True, slots=True)
class Part:
    """A term of a reward. low, high: its own range, mapped to [0, 1]. optional: a missing one is left out and the other
    weights share its place; otherwise it makes the whole reward missing."""

    name: str
    weight: float
    low: float = 0.0
    high: float = 1.0
    optional: bool = False

    def scaled(self, value: float, owner: str) -> float:
        """To [0, 1]. Raises ValueError for a value off the range: a scale that is wrong must not train."""
        if not self.low <= value <= self.high:
            raise ValueError(f"reward of {owner}: {self.name} is {value}, not in [{self.low}, {self.high}]")
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Composition:
    """The reward of a task. Raises ValueError for no part, repeated names, a weight that is not positive, an empty
    range, or optional parts only."""

    task: str
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"reward of {self.task}: needs parts of different names, has {names}")
        for part in self.parts:
            if not part.weight > 0 or not part.low < part.high:
                raise ValueError(f"reward of {self.task}: {part.name} needs a weight above 0 and a range low < high")
        if all(part.optional for part in self.parts):
            raise ValueError(f"reward of {self.task}: all parts are optional, so there may be none")


@dataclass(frozen=True, slots=True)
class RewardRecord:
    """How one reward came to be.

    parts        as they came, by name
    weights      as they were used; they sum to 1, and a part that was left out has none
    raw          the weighted mean in [0, 1]
    findings     of each detector
    final        raw times the findings' multipliers: what is trained on
    """

    owner: str
    task: str
    parts: Mapping[str, Value]
    weights: Mapping[str, float]
    raw: Value
    findings: Mapping[str, Finding]
    final: Value

    def to_json(self) -> dict[str, Any]:
        """For transcripts; a missing value is {"missing": reason, "detail": ...}."""
        return {
            "owner": self.owner,
            "task": self.task,
            "parts": {name: _plain(value) for name, value in self.parts.items()},
            "weights": dict(self.weights),
            "raw": _plain(self.raw),
            "detectors": {
                name: {"score": finding.score, "flagged": finding.flagged, "multiplier": finding.multiplier}
                for name, finding in self.findings.items()
            },
            "final": _plain(self.final),
        }


def compose(
    composition: Composition,
    values: Mapping[str, Mapping[str, Value]],
    findings: Mapping[str, Mapping[str, Finding]],
) -> dict[str, RewardRecord]:
    """owner -> record. values: owner -> part -> value; findings: what Panel.inspect returned ({} for no detectors).

    Raises ValueError for an owner without one of the parts, with one that is not declared, or, where there are findings
    at all, without findings.
    """
    records = {}
    for owner, parts in values.items():
        declared = {part.name for part in composition.parts}
        if set(parts) != declared:
            raise ValueError(f"reward of {owner}: has parts {sorted(parts)}, but {sorted(declared)} are declared")
        if findings and owner not in findings:
            raise ValueError(f"reward of {owner}: no detector has seen it")
        records[owner] = _record(composition, owner, parts, findings.get(owner, {}))
    return records


def _record(
    composition: Composition, owner: str, values: Mapping[str, Value], findings: Mapping[str, Finding]
) -> RewardRecord:
    missing = [part for part in composition.parts if isinstance(values[part.name], Missing)]
    required = next((part for part in missing if not part.optional), None)
    if required:
        reason = values[required.name]
        lost = Missing(reason.reason, f"{required.name}: {reason.detail}")
        return RewardRecord(owner, composition.task, dict(values), {}, lost, findings, lost)
    present = [part for part in composition.parts if part not in missing]
    total = sum(part.weight for part in present)
    weights = {part.name: part.weight / total for part in present}
    raw = sum(weights[part.name] * part.scaled(values[part.name], owner) for part in present)
    final = raw
    for finding in findings.values():
        final *= finding.multiplier
    return RewardRecord(owner, composition.task, dict(values), weights, raw, findings, final)


def summary(records: Iterable[RewardRecord]) -> dict[str, float]:
    """A step's metrics: rl/reward (final) and rl/reward_raw over those that have one, shares that are missing (by
    reason) and flagged (by detector). Empty without records; the means are left out where every reward is missing."""
    records = list(records)
    scored = [record for record in records if not isinstance(record.final, Missing)]
    metrics = {}
    if scored:
        metrics["rl/reward"] = sum(record.final for record in scored) / len(scored)
        metrics["rl/reward_raw"] = sum(record.raw for record in scored) / len(scored)
    missing = Counter(record.final.reason for record in records if isinstance(record.final, Missing))
    flagged = Counter(name for record in records for name, finding in record.findings.items() if finding.flagged)
    metrics |= {f"rl/missing/{reason}": count / len(records) for reason, count in sorted(missing.items())}
    seen = {name for record in records for name in record.findings}
    return metrics | {f"rl/flagged/{name}": flagged[name] / len(records) for name in sorted(seen)}


def _plain(value: Value) -> Any:
    return {"missing": value.reason, "detail": value.detail} if isinstance(value, Missing) else value
