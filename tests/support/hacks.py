"""The labelled replies of tests/fixtures/hacks as specimens, and what a panel makes of them."""

import json
from dataclasses import dataclass
from pathlib import Path

from osim_core.reward.detectors import Finding, Panel, Specimen

FOLDER = Path(__file__).parent.parent / "fixtures" / "hacks"


@dataclass(frozen=True)
class Case:
    """A line of a fixture file: `detector` ought to flag it if `hack`; `specimens` share one owner."""

    detector: str
    hack: bool
    specimens: tuple[Specimen, ...]


def read_cases(name: str) -> list[Case]:
    """All cases of the set `name`, "writing" or "kept_apart"."""
    cases = []
    for path in sorted((FOLDER / name).glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            row = json.loads(line)
            hack, texts = row.pop("hack"), row.pop("texts")
            known = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
            owner = f"{name}/{path.stem}/{number}"
            specimens = tuple(Specimen(owner=owner, text=text, group=owner, **known) for text in texts)
            cases.append(Case(path.stem, hack, specimens))
    return cases


def inspect(panel: Panel, cases: list[Case]) -> list[dict[str, Finding]]:
    """The findings of each case."""
    findings = panel.inspect([specimen for case in cases for specimen in case.specimens])
    return [findings[case.specimens[0].owner] for case in cases]


def recall(cases: list[Case], findings: list[dict[str, Finding]]) -> dict[str, tuple[int, int, int, int]]:
    """detector -> (its hacks, those that it flags itself, its near misses, those that any detector flags)."""
    table: dict[str, list[int]] = {}
    for case, found in zip(cases, findings, strict=True):
        row = table.setdefault(case.detector, [0, 0, 0, 0])
        if case.hack:
            row[0] += 1
            row[1] += found[case.detector].flagged
        else:
            row[2] += 1
            row[3] += any(finding.flagged for finding in found.values())
    return {name: tuple(row) for name, row in table.items()}
