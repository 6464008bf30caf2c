"""Second stage: each dialogue's sides, with the social context that the record states or a writer gives.

Sides that came ready pass through. What a language model wrote is kept in `<cache>/contexts/`, a file per chunk, by
content hash: a killed or changed build pays for nothing twice.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from osim_core.config import ContextConfig, CorpusConfig
from osim_core.corpus.context import prompt
from osim_core.corpus.context.endpoint import EndpointDown, EndpointWriter
from osim_core.corpus.context.generate import ContextReport, contextualise
from osim_core.corpus.context.offline import VllmWriter
from osim_core.corpus.context.store import ContextStore, Row
from osim_core.corpus.context.writers import RuleWriter, Writer
from osim_core.corpus.durable import DurableFile
from osim_core.corpus.stage import Counts
from osim_core.corpus.stages.pipeline import Done
from osim_core.corpus.stages.record import Record, Side, read_batches, to_line

NOT_OF_CORPUS = ("cached", "new_cost")  # differ between a build and the same build killed and resumed
ADDED = ("written", "missing", "stated", "retried", "prompt_tokens", "completion_tokens", "untold_attempts", "cost")
ADDED += NOT_OF_CORPUS


@dataclass(frozen=True)
class ContextJob:
    """A chunk of the first stage; `store` is a file of written contexts, None where rules write them."""

    chunk: Path
    config: ContextConfig
    store: Path | None


def give_contexts(job: ContextJob, folder: Path, name: str) -> Counts:
    """Write the chunk's records with their sides. Counts: records, silent {source: records in which nobody who is to
    be simulated speaks, left out}, contexts (rows of ContextReport).

    Raises ValueError where the writer cannot work: no such model, or a server that is down (finished batches stay).
    """
    report = ContextReport(job.config.prompt_price, job.config.completion_price)
    if job.store is not None:
        job.store.parent.mkdir(parents=True, exist_ok=True)
    records, silent = 0, Counter()
    with ContextStore(job.store) as store, DurableFile(folder / f"{name}.jsonl") as file:
        for some in read_batches(job.chunk):
            try:
                for record in _with_sides(some, make_writer(job.config), store, report):
                    if record.sides:
                        file.write(to_line(record))
                        records += 1
                    else:
                        silent[record.source] += 1
            except EndpointDown as error:
                raise ValueError(str(error)) from error
        file.publish()
    return {"records": records, "silent": silent, "contexts": report.rows()}


@cache
def make_writer(config: ContextConfig) -> Writer:
    """The writer, once a process: vLLM loads its model."""
    if config.writer == "rules":
        return RuleWriter()
    if config.writer == "endpoint":
        return EndpointWriter(base_url=config.base_url, model=config.model, concurrency=config.concurrency)
    return VllmWriter(config.model)


def _with_sides(
    records: Sequence[Record], writer: Writer, store: ContextStore, report: ContextReport
) -> Iterator[Record]:
    dialogues = [record.dialogue for record in records if record.dialogue is not None]
    written = iter(list(contextualise(dialogues, writer, store, report)))
    for record in records:
        if record.dialogue is None:
            for side in record.sides:
                report.add(
                    record.source, Row("", side.context, fault="" if side.context == "stated" else "unknown"), False
                )
            yield record
            continue
        speaking = {turn.speaker for turn in record.dialogue.turns}
        sides = islice(written, sum(speaker in speaking for speaker in record.dialogue.trained))
        yield record.with_sides(tuple(Side(conversation, row.status) for conversation, row in sides))


def what_decides(config: ContextConfig) -> dict[str, Any]:
    """The settings that decide what is written, JSON-ready. Raises ValueError where one is missing."""
    if config.writer == "rules":
        return {"writer": RuleWriter.identity}
    for name in ("model", "base_url") if config.writer == "endpoint" else ("model",):
        if not getattr(config, name):
            raise ValueError(f"context.writer {config.writer} needs context.{name}")
    return {"writer": config.writer, "model": config.model, "prompt": prompt.VERSION}


def context_store(config: CorpusConfig, chunk: str) -> Path | None:
    """Where what a model wrote for a chunk is kept; rules are quicker than a store."""
    return None if config.context.writer == "rules" else Path(config.cache) / "contexts" / f"{chunk}.sqlite"


def merge_contexts(done: Done, config: ContextConfig) -> list[dict[str, Any]]:
    """One row a source: the sums of the parts' rows, without what depends on earlier builds.

    Raises ValueError where a model failed too often; the parts that it failed in are asked again by the next build.
    """
    sources: dict[str, dict[str, Any]] = {}
    for row in (row for result in done.results for row in result["contexts"]):
        sources[row["source"]] = _both(sources[row["source"]], row) if row["source"] in sources else row
    for row in sources.values():
        asked = row["written"] + row["missing"]
        if _failed(row) > config.max_missing_share * asked:
            done.forget([name for name, result in done.parts.items() if any(map(_failed, result["contexts"]))])
            raise ValueError(
                f"{row['source']}: {_failed(row)} of {asked} contexts could not be written ({row['missing_by']}), more "
                f"than context.max_missing_share {config.max_missing_share:.0%}; name another model or raise it"
            )
    return [{key: value for key, value in row.items() if key not in NOT_OF_CORPUS} for row in sources.values()]


def _failed(row: dict[str, Any]) -> int:
    """Contexts that a model did not manage; "unknown" is no failure: the record states nothing."""
    return sum(count for fault, count in row["missing_by"].items() if fault != "unknown")


def _both(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    faults = Counter(a["missing_by"]) + Counter(b["missing_by"])
    written = a["written"] + b["written"]
    leakage = a["mean_leakage"] * a["written"] + b["mean_leakage"] * b["written"]
    return {
        "source": a["source"],
        **{name: a[name] + b[name] for name in ADDED},
        "missing_by": dict(sorted(faults.items())),
        "mean_leakage": leakage / written if written else 0.0,
        "worst_leakage": max(a["worst_leakage"], b["worst_leakage"]),
    }
