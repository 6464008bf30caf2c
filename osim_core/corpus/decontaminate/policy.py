"""What to do with rows that hold benchmark items, and the report of it per item and per source.

    verdict = judge(index, rows, "mask")           # rows of one part, each the contents of its turns
    counts = account(index, verdict, sources)      # JSON-ready; parts add up with merge([...])

    drop  flagged rows go
    mask  they stay, without loss in the turns where a shared run stands (`Verdict.masks`)
    flag  they stay as they are, and are only counted

Dropping is the rule for training on what will be measured: a masked item still stands in the context of the turns
that follow it. Masking is for long conversations that quote one.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from osim_core.corpus.decontaminate.index import Decontaminator, Matches, Span

Policy = Literal["drop", "mask", "flag"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """On R rows. flagged, keep: bool [R]. masks: row -> the places of shared runs, in order; only under "mask"."""

    matches: Matches
    flagged: np.ndarray
    keep: np.ndarray
    masks: dict[int, list[Span]]

    def masked_turns(self, row: int) -> list[int]:
        """Turns of a row that hold a shared run, ascending."""
        return sorted({span.turn for span in self.masks.get(row, [])})


def judge(index: Decontaminator, rows: Sequence[Sequence[str]], policy: Policy, threads: int = 1) -> Verdict:
    """Apply a policy to rows, each the contents of its turns. Raises ValueError for a policy that is none."""
    if policy not in ("drop", "mask", "flag"):
        raise ValueError(f"decontamination policy must be drop, mask or flag, got {policy!r}")
    matches = index.search(rows, threads)
    flagged = np.zeros(len(rows), bool)
    flagged[matches.row[matches.flagged]] = True
    keep = ~flagged if policy == "drop" else np.ones(len(rows), bool)
    return Verdict(matches, flagged, keep, index.locate(rows, matches, threads) if policy == "mask" else {})


def account(index: Decontaminator, verdict: Verdict, sources: Sequence[str]) -> dict[str, Any]:
    """Counts of a part whose rows come from `sources` [R], JSON-ready.

    sources  {source: {rows, flagged, dropped, masked, masked_turns}}
    items    {id: {benchmark, rows (that match), flagged, longest, coverage (the largest), sources {source: flagged}}}
    """
    number_of = {name: number for number, name in enumerate(dict.fromkeys(sources))}
    source_R = np.array([number_of[name] for name in sources], np.int64)
    masked_turns_R = np.zeros(source_R.size, np.int64)
    for row in verdict.masks:
        masked_turns_R[row] = len(verdict.masked_turns(row))
    columns = {
        "rows": np.ones(source_R.size, np.int64),
        "flagged": verdict.flagged,
        "dropped": ~verdict.keep,
        "masked": masked_turns_R > 0,
        "masked_turns": masked_turns_R,
    }
    totals = {name: np.bincount(source_R, column, len(number_of)).astype(int) for name, column in columns.items()}
    by_source = {source: {name: int(t[n]) for name, t in totals.items()} for source, n in number_of.items()}
    items: dict[str, dict[str, Any]] = {}
    for row, number, longest, coverage, flagged in zip(*(c.tolist() for c in verdict.matches), strict=True):
        item = index.items[number]
        found = {"rows": 1, "flagged": int(flagged), "longest": longest, "coverage": coverage}
        found |= {"benchmark": item.benchmark, "sources": {sources[row]: 1} if flagged else {}}
        items[item.id] = _both(items[item.id], found) if item.id in items else found
    return {"sources": by_source, "items": items}


def merge(reports: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The counts of several parts as one."""
    sources: dict[str, Counter[str]] = {}
    items: dict[str, dict[str, Any]] = {}
    for report in reports:
        for name, counts in report["sources"].items():
            sources.setdefault(name, Counter()).update(counts)
        for name, found in report["items"].items():
            items[name] = _both(items[name], found) if name in items else found
    return {"sources": {name: dict(counts) for name, counts in sources.items()}, "items": items}


def by_benchmark(index: Decontaminator, report: dict[str, Any]) -> dict[str, dict[str, int]]:
    """{benchmark: {items, items_found (flagged anywhere), items_too_short (never flagged)}} of all items."""
    benchmarks: dict[str, dict[str, int]] = {}
    for number, item in enumerate(index.items):
        counts = benchmarks.setdefault(item.benchmark, {"items": 0, "items_found": 0, "items_too_short": 0})
        counts["items"] += 1
        counts["items_found"] += report["items"].get(item.id, {"flagged": 0})["flagged"] > 0
        counts["items_too_short"] += index.too_short(number)
    return benchmarks


def _both(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Two findings of one item."""
    return {
        "benchmark": a["benchmark"],
        "rows": a["rows"] + b["rows"],
        "flagged": a["flagged"] + b["flagged"],
        "longest": max(a["longest"], b["longest"]),
        "coverage": max(a["coverage"], b["coverage"]),
        "sources": dict(Counter(a["sources"]) + Counter(b["sources"])),
    }
