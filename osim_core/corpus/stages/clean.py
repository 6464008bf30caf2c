"""Fifth stage: what becomes of each side: a duplicate, a benchmark item, or kept.

Sides, and not records, are searched for benchmark items, since a social context can hold one, too. Writes SIDES
(tables.py); the text itself stays in the chunks of the filter stage.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from osim_core.corpus.decontaminate import Decontaminator, Item, read_items
from osim_core.corpus.decontaminate.policy import Policy, Verdict, account, by_benchmark, judge, merge
from osim_core.corpus.durable import write_durably
from osim_core.corpus.split import rank_bits
from osim_core.corpus.stage import Counts
from osim_core.corpus.stages.cluster import Clusters, read_clusters
from osim_core.corpus.stages.record import Record, Side, read_batches
from osim_core.corpus.stages.tables import SIDES, TableWriter, audit_row

NAMED_ITEMS = 3  # in an audit row's reason; the report has all


@dataclass(frozen=True)
class CleanJob:
    """A chunk of the filter stage with its place among all rows; the cluster stage's folder; benchmark items, if any.

    duplicates: "drop" ends them here, "flag" only marks them by their cluster. seed: of the split.
    """

    chunk: Path
    first_row: int
    records: int
    clusters: Path
    duplicates: Literal["drop", "flag"]
    items: Path | None
    policy: Policy
    seed: int


def clean(job: CleanJob, folder: Path, name: str) -> Counts:
    """Counts: duplicates {source: records}, duplicate_sides (that end here), found (sources and items, as in
    decontaminate/policy.py)."""
    clusters = read_clusters(job.clusters, job.first_row, job.records)
    index = None if job.items is None else make_index(job.items)
    duplicates: Counter[str] = Counter()
    duplicate_sides = first = 0
    found: dict[str, Any] = {"sources": {}, "items": {}}
    with TableWriter(folder / f"{name}.parquet", SIDES) as table:
        for some in read_batches(job.chunk):
            numbered = list(enumerate(some, first))
            first += len(some)
            sides = [(number, record, side) for number, record in numbered for side in record.sides]
            rows = [_row(job, clusters, *side) for side in sides]
            duplicates.update(record.source for number, record in numbered if not clusters.keep[number])
            alive = [at for at, row in enumerate(rows) if not row["ended"]]
            if index is not None and alive:
                verdict = judge(index, [_texts(sides[at][2]) for at in alive], job.policy)
                found = merge([found, account(index, verdict, [rows[at]["source"] for at in alive])])
                for place, at in enumerate(alive):
                    _apply(index, verdict, place, rows[at], job.policy)
            for row in rows:
                duplicate_sides += row["ended"] == "dedup"
                table.add(row)
        table.publish()
    return {"duplicates": dict(sorted(duplicates.items())), "duplicate_sides": duplicate_sides, "found": found}


def _texts(side: Side) -> list[str]:
    return [message.content for message in side.conversation.messages]


def _row(job: CleanJob, clusters: Clusters, number: int, record: Record, side: Side) -> dict[str, Any]:
    gone = job.duplicates == "drop" and not clusters.keep[number]
    cluster, jaccard = int(clusters.cluster[number]), float(clusters.jaccard[number])
    conversation = side.conversation
    return {
        **audit_row(record, side, *(("dedup", f"row {cluster} says the same, index {jaccard:.3f}") if gone else ())),
        "row": job.first_row + number,
        "cluster": cluster,
        "jaccard": jaccard,
        "group": rank_bits(conversation.group, job.seed),
        "others": sorted({rank_bits(other, job.seed) for other in conversation.others}),
        "masked": [],
    }


def _apply(index: Decontaminator, verdict: Verdict, place: int, row: dict[str, Any], policy: Policy) -> None:
    if not verdict.flagged[place]:
        return
    matches = verdict.matches
    items = matches.item[(matches.row == place) & matches.flagged].tolist()
    names = [f"{index.items[item].benchmark}: {index.items[item].id}" for item in items]
    more = f" and {len(names) - NAMED_ITEMS} more" if len(names) > NAMED_ITEMS else ""
    row["reason"] = f"holds {', '.join(names[:NAMED_ITEMS])}{more}"
    if policy == "drop":
        row["ended"] = "decontaminate"
    row["masked"] = verdict.masked_turns(place)


def benchmark_file(packaged: Sequence[Item], against: Sequence[str], folder: Path) -> Path | None:
    """Collect the items of the packaged benchmarks and of the user's files in one file, named by its content.

    None where there are none. Raises ValueError for a file or item that cannot be read.
    """
    items = list(packaged)
    for path in against:
        if not Path(path).is_file():
            raise ValueError(f"decontaminate.against: {path}: no such file")
        items += read_items(Path(path))
    if not items:
        return None
    rows = [
        {"id": item.id, "benchmark": item.benchmark, "messages": [{"content": text} for text in item.texts]}
        for item in items
    ]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = folder / f"items-{hashlib.sha256(data).hexdigest()[:16]}.jsonl"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(path, data)
    make_index(path)  # refuses two items of one id, or one without words, before any stage runs
    return path


@cache
def make_index(items: Path) -> Decontaminator:
    """The index of the items in a file, once a process."""
    return Decontaminator(read_items(items))


def merge_clean(results: Sequence[Counts], items: Path | None) -> dict[str, Any]:
    """Of the manifest: duplicates {source: records}, duplicate_sides, contamination {sources, items, benchmarks}."""
    duplicates: Counter[str] = Counter()
    for result in results:
        duplicates.update(result["duplicates"])
    found = merge(result["found"] for result in results)
    found["benchmarks"] = by_benchmark(make_index(items), found) if items else {}
    sides = sum(result["duplicate_sides"] for result in results)
    return {"duplicates": dict(duplicates), "duplicate_sides": sides, "contamination": found}
