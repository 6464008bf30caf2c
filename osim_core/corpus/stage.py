"""A stage of a corpus build: many independent parts, each done once, whatever kills the run in between.

    stage = Stage(work, "filter", identity={"input": previous.key, "options": asdict(options)})
    results = stage.run(filter_part, jobs, executor, report)

Each part's function writes its files into `stage.folder` (durably: durable.py) and returns its counts, which are
written last, as `<part>.json`. A part whose counts are there is not done again. The folder is named by a hash of the
identity, so other options, or another result of the stage before, start afresh beside the old one.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from osim_core.corpus.durable import write_durably
from osim_core.corpus.executor import Executor

Counts = dict[str, Any]
Report = Callable[[str, int, int], None]  # stage, parts done, parts in all


@dataclass(frozen=True)
class Job:
    """One part: its name, unique in the stage, and what its function is called with, picklable."""

    name: str
    argument: Any


@dataclass(frozen=True)
class Stage:
    """One stage of the build in the folder `work`. identity: all that decides its result, JSON-ready."""

    work: Path
    name: str
    identity: dict[str, Any]

    @cached_property
    def key(self) -> str:
        """Hex name of this stage's result; the next stage's identity holds it."""
        text = json.dumps([self.name, self.identity], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """Where its parts' files are."""
        return self.work / f"{self.name}-{self.key}"

    def run(
        self,
        function: Callable[[Any, Path, str], Counts],
        jobs: Sequence[Job],
        executor: Executor,
        report: Report = lambda stage, done, total: None,
    ) -> list[Counts]:
        """Counts of every part, in the order of `jobs`; parts that are done already are only read.

        function(argument, folder, name) runs in a process of the executor: a module-level function. What it raises
        ends the stage, with finished parts kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        counts = {job.name: self._counts(job.name) for job in jobs}
        assert len(counts) == len(jobs), "two parts of one name"
        missing = [job for job in jobs if counts[job.name] is None]
        done = len(jobs) - len(missing)
        report(self.name, done, len(jobs))
        for name, result in executor.run(_do, [(function, job, self.folder) for job in missing]):
            counts[name] = result
            done += 1
            report(self.name, done, len(jobs))
        return [counts[job.name] for job in jobs]

    def _counts(self, name: str) -> Counts | None:
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None


def _do(work: tuple[Callable[[Any, Path, str], Counts], Job, Path]) -> tuple[str, Counts]:
    function, job, folder = work
    counts = function(job.argument, folder, job.name)
    write_durably(folder / f"{job.name}.json", json.dumps(counts).encode())
    return job.name, counts
