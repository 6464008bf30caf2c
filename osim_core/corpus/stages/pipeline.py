"""Stages in a row: each one's key covers the one before it, so a change redoes what comes after it and nothing else."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osim_core.corpus.executor import Executor
from osim_core.corpus.stage import Counts, Job, Report, Stage
from osim_core.corpus.stages import VERSION


@dataclass(frozen=True)
class Done:
    """A finished stage: its parts by name, in order."""

    name: str
    key: str
    folder: Path
    parts: dict[str, Counts]
    seconds: float
    cpu_seconds: float  # of this process: with more than one, the others did the work

    @property
    def results(self) -> list[Counts]:
        return list(self.parts.values())

    def file(self, part: str, kind: str = "jsonl") -> Path:
        """What a part, or a chunk that it wrote, is called in this stage's folder."""
        return self.folder / f"{part}.{kind}"

    def forget(self, names: Sequence[str]) -> None:
        """Have these parts done again by the next build."""
        for name in names:
            (self.folder / f"{name}.json").unlink()


class Pipeline:
    """Runs stages in the folder `work`; `done` are those that have run."""

    def __init__(self, work: Path, executor: Executor, report: Report) -> None:
        self.work, self.executor, self.report = work, executor, report
        self.done: list[Done] = []
        for partial in work.rglob("*.partial"):  # of a killed build
            partial.unlink()

    @property
    def key(self) -> str:
        """Of the last stage: names everything up to it."""
        return self.done[-1].key

    def run(
        self,
        name: str,
        function: Callable[[Any, Path, str], Counts],
        jobs: dict[str, Any],
        **options: Any,
    ) -> Done:
        """Run the next stage: function(argument, folder, name of the part) for every part that is not done yet.

        options: everything else that decides the stage's result, JSON-ready.
        """
        before = self.done[-1].key if self.done else ""
        stage = Stage(self.work, name, {"version": VERSION, "after": before, **options})
        started = time.perf_counter(), time.process_time()
        results = stage.run(function, [Job(*job) for job in jobs.items()], self.executor, self.report)
        parts = dict(zip(jobs, results, strict=True))
        took = time.perf_counter() - started[0], time.process_time() - started[1]
        self.done.append(Done(name, stage.key, stage.folder, parts, *took))
        return self.done[-1]
