"""metrics.jsonl and TensorBoard: what a run measured, one flat object a line, written by rank 0.

    {"step": 20, "train/loss": 4.217, "train/grad_norm": 0.93, "perf/tokens_per_second": 81234.5}

A step may have several lines (training, then validation). Names under `perf/` are timings: they share the
file, because people read them beside the loss, and they are the only values that may differ between a run
and the same run killed and resumed. `deterministic_lines` strips them, and what is left must then be equal
byte for byte.
"""

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from osim_core.corpus.durable import write_durably
from osim_core.observe.run_dir import RunDirectory, is_rank_zero

TIMING_PREFIX = "perf/"


class MetricsLog:
    """Appends to metrics.jsonl and TensorBoard on rank 0; inert on other ranks.

    resume_step: None for a run that starts at its beginning: whatever an earlier attempt logged is cut. A
    step s keeps lines up to and including s. So log everything of step s before checkpoint s is started.

    Each line is one write to a file opened for appending, so a killed process leaves at most one partial
    line, which the next start removes. (A power cut may lose lines that the kernel had not written yet.)
    Raises ValueError naming file and line where the existing log is damaged before its last line.
    """

    def __init__(self, run_dir: RunDirectory, resume_step: int | None = None) -> None:
        self._file: int | None = None
        self._board = None
        if not is_rank_zero():
            return
        _truncate(run_dir.metrics_file, -1 if resume_step is None else resume_step)
        from torch.utils.tensorboard import SummaryWriter  # two seconds of imports that only rank 0 needs

        self._board = SummaryWriter(
            str(run_dir.path / "tensorboard"), purge_step=None if resume_step is None else resume_step + 1
        )
        self._file = os.open(run_dir.metrics_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def log(self, step: int, values: dict[str, float | int | str]) -> None:
        """Write one line. NaN and infinities become the strings "nan", "inf", "-inf": never dropped, valid JSON.

        Raises ValueError where the disk is full.
        """
        if self._file is None:
            return
        line = (json.dumps({"step": step, **{k: _encode(v) for k, v in values.items()}}) + "\n").encode()
        try:
            written = os.write(self._file, line)
        except OSError as error:
            raise ValueError(
                f"metrics.jsonl: cannot write step {step} ({error.strerror}); free space and resume"
            ) from None
        if written != len(line):
            raise ValueError(f"metrics.jsonl: the disk is full at step {step}; free space and resume")
        for name, value in values.items():
            if not isinstance(value, str):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush TensorBoard and close both files."""
        if self._file is not None:
            os.close(self._file)
            self._board.close()
            self._file = self._board = None

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines, "nan" and "inf" turned back into floats. A partial last line (a killed run) is left out.

    Raises ValueError naming file and line for any other damage.
    """
    return [{name: _decode(value) for name, value in row.items()} for _, row in _lines(path)]


def deterministic_lines(path: Path) -> list[str]:
    """The file's lines without `perf/*` values: what a resumed run must reproduce bit for bit."""
    kept = [{k: v for k, v in row.items() if not k.startswith(TIMING_PREFIX)} for _, row in _lines(path)]
    return [json.dumps(row) for row in kept if row.keys() != {"step"}]  # a line of timings only says nothing


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """(raw line with its newline, parsed object) for each complete line."""
    raw = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if raw and not raw[-1].endswith(b"\n"):
        raw.pop()
    parsed = []
    for number, line in enumerate(raw, start=1):
        try:
            row = json.loads(line)
        except ValueError:  # not JSON, or not UTF-8
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise ValueError(f"{path}:{number}: damaged line; repair or remove it, then resume")
        parsed.append((line, row))
    return parsed


def _truncate(path: Path, last_step: int) -> None:
    """Keep the complete lines with step <= last_step; the file is replaced only if that changes it."""
    if not path.exists():
        return
    kept = b"".join(line for line, row in _lines(path) if row["step"] <= last_step)
    if kept != path.read_bytes():
        write_durably(path, kept)


def _encode(value: float | int | str) -> float | int | str:
    assert isinstance(value, (float, int, str)), f"a metric must be a plain number, got {type(value)}"
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _decode(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value
