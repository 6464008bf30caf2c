"""The run directory: one folder per run that holds everything a run writes, and the link `latest` beside it.

    runs/<recipe>/<config>-<time>/   config.json  metrics.jsonl  checkpoints/  rollouts/  profile/
    report.html
                                     tensorboard/  summary.json (at the end)
    runs/<recipe>/latest             -> the newest of them

Recipes call `RunDirectory.create` on every rank: rank 0 makes the folder and tells the others its name.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from osim_core.config import from_dict, to_dict
from osim_core.corpus.durable import write_durably

FOLDERS = ("checkpoints", "rollouts", "profile")


def is_rank_zero() -> bool:
    """Whether this process writes for the job: rank 0, or a process that is not distributed at all."""
    return not dist.is_initialized() or dist.get_rank() == 0


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run. Build it with `create` (a new run) or `open` (resume, report, chat)."""

    path: Path

    @staticmethod
    def create(recipe: str, config_name: str, config: Any, root: Path = Path("runs")) -> "RunDirectory":
        """Make `root/recipe/config_name-YYYYmmdd-HHMMSS/` with its folders and config.json, and point
        `latest` at it.

        Collective: with torch.distributed initialised every rank must call it; only rank 0 writes.
        Raises ValueError on every rank where the folder cannot be written.
        """
        outcome: list[str | None] = [None, None]  # path, error
        if is_rank_zero():
            try:
                outcome[0] = str(_make(root / recipe, config_name, config))
            except OSError as error:
                reason = error.strerror
                outcome[1] = f"{root / recipe}: cannot create a run directory ({reason}); free space or move it"
        if dist.is_initialized():
            dist.broadcast_object_list(outcome, src=0)
        if outcome[1]:
            raise ValueError(outcome[1])
        return RunDirectory(Path(outcome[0]))

    @staticmethod
    def open(path: Path | str, recipe: str | None = None, root: Path = Path("runs")) -> "RunDirectory":
        """An existing run: its folder, the link `runs/<recipe>/latest`, or the bare word "latest" with
        `recipe` given.

        Raises ValueError where there is no run.
        """
        wanted = Path(path)
        if str(path) == "latest" and recipe:
            wanted = root / recipe / "latest"
        if not wanted.is_dir():
            raise ValueError(f"{wanted}: no such run directory; give runs/<recipe>/<name> or runs/<recipe>/latest")
        found = wanted.resolve()
        if not (found / "config.json").is_file():
            raise ValueError(f"{wanted}: not a run directory (no config.json in it)")
        return RunDirectory(found)

    def read_config[Config](self, kind: type[Config]) -> Config:
        """The resolved config that this run was started with. Raises ValueError where it does not fit
        `kind`.
        """
        file = self.path / "config.json"
        try:
            values = json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}: line {error.lineno}: not valid JSON ({error.msg})") from None
        return from_dict(kind, values, where=str(file))

    def check_resumable(self, config: Any, same: tuple[str, ...]) -> None:
        """Refuse to go on with another config: the sections named in `same` must be what this run started with.

        Raises ValueError naming the first key that differs. Other sections (layout, say) may change.
        """
        stored = self.read_config(type(config))
        for section in same:
            old, new = (to_dict(getattr(which, section)) for which in (stored, config))
            for key, value in new.items():
                if old[key] != value:
                    raise ValueError(
                        f"{self.path}: started with {section}.{key} = {old[key]!r}, asked to resume with {value!r}; "
                        "resume with the old value or start a new run"
                    )

    def write_summary(self, values: dict[str, Any]) -> None:
        """Write summary.json (final metrics and the asserted outcome) on rank 0; other ranks do nothing."""
        if is_rank_zero():
            write_durably(self.path / "summary.json", _json(values))

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def profile(self) -> Path:
        return self.path / "profile"


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _make(parent: Path, config_name: str, config: Any) -> Path:
    """A new, uniquely named folder under `parent`; `latest` moves only once the folder is complete."""
    parent.mkdir(parents=True, exist_ok=True)
    name = f"{config_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, attempt = parent / name, 1
    while True:  # two runs may start within one second
        try:
            path.mkdir()
            break
        except FileExistsError:
            attempt += 1
            path = parent / f"{name}-{attempt}"
    for folder in FOLDERS:
        (path / folder).mkdir()
    write_durably(path / "config.json", _json(to_dict(config)))
    link = parent / f".latest.{os.getpid()}.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    os.replace(link, parent / "latest")
    return path
