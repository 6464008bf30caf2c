"""report.html of a corpus: what is in it, what was left out by which stage, and on which terms it may be used.

Written by recipes/corpus.py; again, for any of its run directories:

    python -m osim_core.observe.corpus_report runs/corpus/latest
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from osim_core.corpus.durable import write_durably
from osim_core.observe import page
from osim_core.observe.charts import PALETTE_SIZE, Bars, bars_svg
from osim_core.observe.run_dir import RunDirectory

AXES = {"CONV": "conversation", "SS": "social skill", "COG": "cognition", "ROLE": "role play", "EVAL": "evaluation"}
MOST_ITEMS = 50  # of the benchmark items found; manifest.json has all


def write_corpus_report(run_dir: Path) -> Path:
    """Write run_dir/report.html; returns its path. Raises ValueError where it is no finished run of the recipe."""
    run = RunDirectory.open(run_dir)
    summary_file = run.path / "summary.json"
    summary = json.loads(summary_file.read_text()) if summary_file.is_file() else {}
    manifest_file = Path(summary.get("corpus", "")) / "manifest.json"
    if not manifest_file.is_file():
        raise ValueError(f"{run.path}: no finished corpus run, or its corpus {manifest_file.parent} is gone")
    manifest = json.loads(manifest_file.read_text())
    config = json.loads((run.path / "config.json").read_text())
    parts = [
        page.heading(config["name"], run.path, _sentence(manifest)),
        page.tiles(_figures(manifest, summary)),
        _axes(manifest),
        f'<section class="charts">{"".join(map(_figure, _charts(manifest)))}</section>',
        *_tables(manifest),
        page.details("Summary", summary),
        page.details("Config", config),
    ]
    target = run.path / "report.html"
    write_durably(target, page.document(f"Corpus {config['name']}", parts).encode())
    return target


def _totals(manifest: dict[str, Any], split: str) -> dict[str, int]:
    counts = [by_split[split] for by_split in manifest["statistics"].values()]
    return {what: sum(each[what] for each in counts) for what in ("documents", "tokens", "loss_tokens")}


def _sentence(manifest: dict[str, Any]) -> str:
    train, validation = _totals(manifest, "train"), _totals(manifest, "validation")
    return (
        f"{train['documents']:,} documents of {len(manifest['sources'])} sources to train on, {train['tokens']:,} "
        f"tokens, {train['loss_tokens']:,} of them said by the simulated person; {validation['documents']:,} documents "
        "of other people held out."
    )


def _figures(manifest: dict[str, Any], summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    train, clusters = _totals(manifest, "train"), manifest["clusters"]
    gone = clusters["records"] - clusters["kept"]
    found = manifest["contamination"]["sources"].values()
    yield "training tokens", f"{train['tokens']:,}"
    yield "tokens a document", f"{train['tokens'] / max(train['documents'], 1):,.0f}"
    yield "near-duplicates", f"{gone:,} ({gone / max(clusters['records'], 1):.2%})"
    yield "hold benchmark items", f"{sum(counts['flagged'] for counts in found):,}"
    yield "rows not usable", f"{sum(entry['bad_rows'] for entry in manifest['bad_rows'].values()):,}"
    yield "padding when packed", f"{summary['pack/padding']:.3%}"
    yield "peak memory of a process", f"{summary['peak_rss_of_one_process_mb']:,.0f} MB"


def _axes(manifest: dict[str, Any]) -> str:
    """The SOUL axes, those without a source too: what a corpus lacks is worth seeing."""
    total = sum(axis["tokens"] for axis in manifest["axes"].values()) or 1
    empty = {"sources": [], "licences": [], "documents": 0, "tokens": 0}
    rows = []
    for name in (*AXES, *(axis for axis in manifest["axes"] if axis not in AXES)):
        axis = manifest["axes"].get(name, empty)
        title = f"{name} {AXES[name]}" if name in AXES else name
        share = f"{axis['tokens'] / total:.1%}"
        rows.append((title, ", ".join(axis["sources"]), axis["documents"], axis["tokens"], share))
    return page.table("SOUL axis", ("sources", "documents", "tokens", "share"), rows)


def _charts(manifest: dict[str, Any]) -> Iterator[Bars]:
    lengths = manifest["lengths"]
    largest = sorted(lengths, key=lambda source: -sum(lengths[source].values()))
    series = {source: lengths[source] for source in largest[:PALETTE_SIZE]}
    others: dict[str, float] = {}
    for source in largest[PALETTE_SIZE:]:
        for bin, count in lengths[source].items():
            others[bin] = others.get(bin, 0) + count
    if others:
        series["other sources"] = others
    bins = sorted({int(bin) for found in lengths.values() for bin in found})
    yield Bars("Length", "documents", "tokens, from", series, [str(1 << e) for e in _exponents(bins)])

    clusters = manifest["clusters"]
    sizes = {size: count for size, count in clusters["sizes"].items() if size != "1"}
    ordered = sorted(sizes, key=int)
    if ordered:
        yield Bars("Clusters of near-duplicates", "clusters", "records in a cluster", {"": sizes}, ordered)
        step = 1 / len(clusters["jaccard"])
        indices = {f"{at * step:.2f}": count for at, count in enumerate(clusters["jaccard"])}
        shown = [name for name in indices if float(name) >= 0.5 or indices[name]]
        yield Bars("How near", "records left out", "Jaccard index with the kept one, from", {"": indices}, shown)
    yield Bars("What became of the sides", "sides", "", {"": ended(manifest)}, list(ended(manifest)))


def _exponents(bins: list[int]) -> range:
    return range(min(bins).bit_length() - 1, max(bins).bit_length()) if bins else range(0)


def ended(manifest: dict[str, Any]) -> dict[str, int]:
    """{what became of it: sides}, over the stages."""
    splits = manifest["split"].values()
    dropped = sum(sum(row["dropped"].values()) for row in manifest["filters"])
    found = manifest["contamination"]["sources"].values()
    return {
        "filtered": dropped,
        "duplicate": manifest["duplicate_sides"],
        "benchmark": sum(counts["dropped"] for counts in found),
        "held out": sum(counts["dropped_for_validation"] for counts in splits),
        "validation": sum(counts["validation"] for counts in splits),
        "train": sum(counts["train"] for counts in splits),
    }


def _figure(bars: Bars) -> str:
    return f"<figure><h2>{bars.title}</h2>{bars_svg(bars)}</figure>"


def _tables(manifest: dict[str, Any]) -> Iterator[str]:
    yield page.table(
        "Source",
        ("train documents", "train tokens", "loss tokens", "validation documents", "near-duplicates", "people", "held"),
        (
            (
                name,
                by_split["train"]["documents"],
                by_split["train"]["tokens"],
                by_split["train"]["loss_tokens"],
                by_split["validation"]["documents"],
                manifest["duplicates"].get(name, 0),
                manifest["split"][name]["groups"],
                manifest["split"][name]["held_out_groups"],
            )
            for name, by_split in manifest["statistics"].items()
        ),
    )
    yield page.table(
        "Licences and terms",
        ("axis", "licence", "terms", "written by", "from"),
        (
            (name, about["axis"], about["licence"], about["terms"], about["machine"], about["homepage"])
            for name, about in manifest["facts"].items()
        ),
    )
    yield page.table(
        "Filter",
        ("source", "seen", "kept", "edited", "dropped", "labels", "edits"),
        (
            (
                *(row[name] for name in ("filter", "source", "seen", "kept", "edited")),
                *(_counts(row[name]) for name in ("dropped", "labels", "edits")),
            )
            for row in sorted(manifest["filters"], key=lambda row: row["source"])
        ),
    )
    yield page.table(
        "Social contexts",
        ("stated", "written", "missing", "why", "tokens", "cost", "worst leakage"),
        (
            (
                row["source"],
                row["stated"],
                row["written"],
                row["missing"],
                _counts(row["missing_by"]),
                row["prompt_tokens"] + row["completion_tokens"],
                row["cost"],
                row["worst_leakage"],
            )
            for row in manifest["contexts"]
        ),
    )
    contamination = manifest["contamination"]
    yield page.table(
        "Benchmark",
        ("items", "found in the corpus", "too short to be found"),
        (
            (name, counts["items"], counts["items_found"], counts["items_too_short"])
            for name, counts in contamination["benchmarks"].items()
        ),
    )
    yield page.table(
        "Benchmark items by source",
        ("sides searched", "flagged", "dropped", "turns masked"),
        (
            (name, counts["rows"], counts["flagged"], counts["dropped"], counts["masked_turns"])
            for name, counts in contamination["sources"].items()
        ),
    )
    worst = sorted(contamination["items"].items(), key=lambda item: (-item[1]["flagged"], item[0]))
    yield page.table(
        "Benchmark item found",
        ("benchmark", "sides flagged", "longest run of words", "share of the item", "in"),
        (
            (
                *(name, item["benchmark"], item["flagged"], item["longest"]),
                *(f"{item['coverage']:.0%}", _counts(item["sources"])),
            )
            for name, item in worst[:MOST_ITEMS]
            if item["flagged"]
        ),
    )
    yield page.table(
        "Rows that cannot be used",
        ("rows", "bad", "share", "why"),
        (
            (name, entry["rows"], entry["bad_rows"], f"{entry['bad_share']:.3%}", _counts(entry["bad"]))
            for name, entry in manifest["bad_rows"].items()
        ),
    )
    yield page.table(
        "Left out or repaired while reading",
        ("what",),
        ((name, _counts(notes)) for name, notes in manifest["notes"].items() if notes),
    )


def _counts(values: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in values.items())


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m osim_core.observe.corpus_report RUN_DIRECTORY")
    try:
        print(write_corpus_report(Path(sys.argv[1])))
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
