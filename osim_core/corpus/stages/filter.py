"""Third stage: the sides that no filter drops, as edited, and for each dropped one the filter and its reason.

A record goes on with the sides that are left, and its text is what stands in the first of them: the deduplication then
compares what would be trained.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from osim_core.config import FilterConfig
from osim_core.corpus.durable import DurableFile
from osim_core.corpus.filters import Filter, FilterReport, Outcome, apply
from osim_core.corpus.filters.language import Language
from osim_core.corpus.filters.machine import MachineWritten
from osim_core.corpus.filters.personal import Scrub
from osim_core.corpus.filters.shape import Balance, Length
from osim_core.corpus.filters.toxicity import Toxicity
from osim_core.corpus.stage import Counts
from osim_core.corpus.stages.pipeline import Done
from osim_core.corpus.stages.record import Record, Side, read_chunk, to_line
from osim_core.corpus.stages.tables import TableWriter, audit_row


@dataclass(frozen=True)
class FilterJob:
    """A chunk of the second stage."""

    chunk: Path
    config: FilterConfig


class _Remembering(FilterReport):
    """A report that also knows which filter spoke last, and what it said: of a dropped conversation, why."""

    last: tuple[str, Outcome]

    def add(self, source: str, name: str, outcome: Outcome) -> None:
        self.last = name, outcome
        super().add(source, name, outcome)


def make_filters(config: FilterConfig) -> list[Filter]:
    """The six filters in their order. Raises ValueError for a language or kind that does not exist."""
    return [
        Language(config.languages),
        Length(config.min_trained_words, config.min_words, config.max_words, config.max_characters),
        Balance(config.drop_balance),
        MachineWritten(config.drop_machine),
        Scrub(),
        Toxicity(),
    ]


def run_filters(job: FilterJob, folder: Path, name: str) -> Counts:
    """Write the chunk's records that have a side left, and an audit row for every side that has not stayed.

    Counts: records, sides, filters (rows of FilterReport).
    """
    filters, report = make_filters(job.config), _Remembering()
    records = sides = 0
    with (
        DurableFile(folder / f"{name}.jsonl") as file,
        TableWriter(folder / f"{name}.dropped.parquet") as dropped,
    ):
        for record in read_chunk(job.chunk):
            kept = tuple(_kept(record, filters, report, dropped))
            if kept:
                file.write(to_line(record.with_sides(kept), text=True))
                records, sides = records + 1, sides + len(kept)
        dropped.publish()
        file.publish()
    return {"records": records, "sides": sides, "filters": report.rows()}


def _kept(record: Record, filters: list[Filter], report: _Remembering, dropped: TableWriter) -> Iterator[Side]:
    for side in record.sides:
        found = next(apply(filters, [side.conversation], report), None)
        if found is None:
            name, outcome = report.last
            dropped.add(audit_row(record, side, "filter", f"{name}: {outcome.dropped}"))
        else:
            conversation, labels = found
            yield replace(side, conversation=conversation, labels={**side.labels, **labels})


def merge_filters(done: Done) -> list[dict[str, Any]]:
    """One row per source and filter: the sums of the parts' rows. Raises ValueError if they have left nothing."""
    if not any(result["records"] for result in done.results):
        raise ValueError(f"no conversation is left by the filters; {done.folder}/*.dropped.parquet says why")
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for row in (row for result in done.results for row in result["filters"]):
        key = row["source"], row["filter"]
        merged[key] = _both(merged[key], row) if key in merged else row
    return list(merged.values())


def _both(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    both: dict[str, Any] = {"source": a["source"], "filter": a["filter"]}
    both |= {name: a[name] + b[name] for name in ("seen", "kept", "edited")}
    for name in ("dropped", "labels", "edits"):
        keys = sorted({*a[name], *b[name]})
        both[name] = {key: a[name].get(key, 0) + b[name].get(key, 0) for key in keys}
    return both
