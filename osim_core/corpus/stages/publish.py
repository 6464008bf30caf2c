"""Last step: the corpus folder, complete or absent.

    <key>/ manifest.json  tokenizer/  <split>-<chunk>-00000.{bin,idx,arrow}  audit/*.parquet  quarantine/*.jsonl

Shards are hard links to the files of the last stage where the folder is on its file system, copies elsewhere.
manifest.json holds what prepare.py's has (sources, shards, statistics, notes, licences, tokenizer, baselines, seed,
identity), so midtraining takes the folder as it is, and beside that: `facts` (axis, licence, terms, homepage, who wrote
it) per source, `axes` (sums per axis), `bad_rows`, `contexts`, `filters`, `duplicates`, `contamination`, `lengths`,
`stages` (key and parts of each), `files` (bytes and SHA-256 of all that is not a shard), `config` and `versions`.
Nothing in it depends on the machine's speed or the number of processes: equal inputs give equal bytes.
"""

import errno
import json
import os
import resource
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from osim_core.corpus.durable import sha256_of, sync_folder, write_durably
from osim_core.corpus.stages.inputs import facts
from osim_core.corpus.stages.memory import memory_bound
from osim_core.corpus.stages.pipeline import Done, Pipeline
from osim_core.corpus.stages.tables import TableWriter

PACKAGES = ("osim-core", "numpy", "pyarrow", "tokenizers", "py3langid")


@dataclass(frozen=True)
class Corpus:
    """A corpus that is there: its folder, what the packing plan says, and the stages of this build."""

    folder: Path
    plan: dict[str, float]
    stages: Sequence[Done]

    def summary(self, processes: int) -> dict[str, Any]:
        """summary.json of a run: totals, seconds of each stage, memory against its bound, and what holds."""
        manifest = json.loads((self.folder / "manifest.json").read_text())
        totals = {
            f"{split}/{what}": sum(counts[split][what] for counts in manifest["statistics"].values())
            for split in manifest["shards"]
            for what in ("documents", "tokens", "loss_tokens")
        }
        chunks = [chunk for part in self.stages[0].results for chunk in part["chunks"]]
        by_name = {done.name: done for done in self.stages}
        records = sum(part["records"] for part in by_name["filter"].results)
        sides = sum(part["sides"] for part in by_name["filter"].results)
        largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return {
            "corpus": str(self.folder),
            "records": sum(chunk["records"] for chunk in chunks),
            "bytes": sum(chunk["bytes"] for chunk in chunks),
            **totals,
            **{f"pack/{name}": self.plan[name] for name in ("rows", "padding", "dropped_documents", "dropped_tokens")},
            **{f"seconds/{done.name}": done.seconds for done in self.stages},
            **{f"cpu_seconds/{done.name}": done.cpu_seconds for done in self.stages},
            "peak_rss_of_one_process_mb": largest / 1024,
            "memory_bound_mb": memory_bound(records, sides, processes) / 2**20,
            "outcome": {"ready_to_train": totals["train/documents"] > 0},
        }


def publish(out: Path, manifest: dict[str, Any], stages: Pipeline) -> Path:
    """Write the corpus to `out`, or find it there. Raises ValueError if `out` holds something else."""
    folders = {done.name: done.folder for done in stages.done}
    tokenizer, key = folders["tokenizer"] / "tokenizer", stages.key
    manifest["stages"] = {done.name: {"key": done.key, "parts": len(done.parts)} for done in stages.done}
    if out.exists():
        stored = out / "manifest.json"
        if stored.is_file() and json.loads(stored.read_text()).get("identity", {}).get("key") == key:
            return out
        raise ValueError(f"{out}: exists and is another corpus; name another --out or remove it")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "audit").mkdir(parents=True)
    (partial / "quarantine").mkdir()
    for entry in (entry for entries in manifest["shards"].values() for entry in entries):
        for name in entry["files"]:
            _link(folders["tokenise"] / name, partial / name)
    shutil.copytree(tokenizer, partial / "tokenizer")
    for path in sorted([*folders["filter"].glob("*.dropped.parquet"), *folders["tokenise"].glob("*.audit.parquet")]):
        _link(path, partial / "audit" / path.name)
    for path in sorted(folders["read"].glob("*.quarantine.jsonl")):
        _link(path, partial / "quarantine" / path.name)
        _audit_bad_rows(path, partial / "audit" / f"{path.stem}.audit.parquet")
    files = {
        str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for name in ("audit", "quarantine", "tokenizer")
        for path in sorted((partial / name).iterdir())
    }
    whole = {**manifest, "files": files, "identity": {"key": key}}
    write_durably(partial / "manifest.json", (json.dumps(whole, indent=1) + "\n").encode())
    for folder in (partial / "audit", partial / "quarantine", partial / "tokenizer", partial):
        sync_folder(folder)
    partial.rename(out)
    sync_folder(out.parent)
    return out


def point_to(link: Path, folder: Path) -> None:
    """Make the symbolic link `link` name `folder`, whatever it named before."""
    partial = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    partial.unlink(missing_ok=True)
    partial.symlink_to(folder.resolve())
    os.replace(partial, link)


def describe(sources: Iterable[str], statistics: dict[str, dict[str, dict[str, int]]]) -> dict[str, Any]:
    """The parts of the manifest that say what the corpus is: facts and licences per source, sums per axis."""
    known = {source: facts(source) for source in sources}
    axes: dict[str, dict[str, Any]] = {}
    for source, about in known.items():
        axis = axes.setdefault(about["axis"], {"sources": [], "licences": [], "documents": 0, "tokens": 0})
        axis["sources"].append(source)
        axis["licences"] = sorted({*axis["licences"], about["licence"]})
        for counts in statistics[source].values():
            axis["documents"] += counts["documents"]
            axis["tokens"] += counts["tokens"]
    return {
        "facts": known,
        "licences": {name: f"{about['licence']}; {about['homepage']}" for name, about in known.items()},
        "axes": axes,
        "versions": {name: version(name) for name in PACKAGES},
    }


def _audit_bad_rows(quarantine: Path, target: Path) -> None:
    """Rows that could not be read, in the audit table's form."""
    with TableWriter(target) as table, quarantine.open("rb") as lines:
        for line in lines:
            entry = json.loads(line)
            name = entry["file"] if entry["row"] is None else f"{entry['file']}:{entry['row']}"
            table.add(
                {
                    "id": name,
                    "source": entry["file"],
                    "axis": "",
                    "ended": "read",
                    "reason": f"{entry['kind']}: {entry['reason']}",
                    "context": "",
                    "labels": "{}",
                    "split": "",
                    "document": "",
                }
            )
        table.publish()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())
