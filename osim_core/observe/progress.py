"""The line that a person watches while a run trains. Rank 0 only.

On a terminal: one live rich line with a bar. Elsewhere (a log file, Slurm): one plain line every `every`
steps. `update` takes the same dict of metrics that goes to metrics.jsonl, so there is one source of
numbers.
"""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from osim_core.observe.run_dir import is_rank_zero

# metric name -> how it reads on the line
SHOWN = (
    ("train/loss", "loss {:.4f}"),
    ("train/learning_rate", "lr {:.2e}"),
    ("perf/tokens_per_second", "{:,.0f} tok/s"),
    ("perf/mfu", "MFU {:.1%}"),
    ("val/loss", "val {:.4f}"),
    ("rl/reward", "reward {:.3f}"),
    ("rl/length", "length {:.1f}"),
    ("rl/mismatch", "mismatch {:.1e}"),
    ("val/reward", "held out {:.3f}"),
)


class Progress:
    """`with Progress(total_steps) as progress: ... progress.update(step, metrics)`; step counts finished
    steps.
    """

    def __init__(
        self, total: int, start: int = 0, every: int = 10, label: str = "step", console: Console | None = None
    ) -> None:
        self._total, self._every, self._label = total, every, label
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._enabled = is_rank_zero()
        self._seen: dict[str, float] = {}
        self._first, self._started = start, time.monotonic()
        self._bar: Bar | None = None
        if self._enabled and self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[line]}"),
            )
            self._bar = Bar(*columns, console=self._console)
            self._task = self._bar.add_task(label, total=total, completed=start, line="")

    def update(self, step: int, metrics: dict[str, float | int | str]) -> None:
        """Show `step` done of the total; values not in `metrics` keep their last reading (validation loss)."""
        if not self._enabled:
            return
        self._seen.update((name, metrics[name]) for name, _ in SHOWN if name in metrics)
        line = self._line(step)
        if self._bar:
            self._bar.update(self._task, completed=step, line=line)
        elif step % self._every == 0 or step == self._total:
            self._console.print(f"{self._label} {line}", markup=False)

    def note(self, text: str) -> None:
        """Print a full line (a checkpoint saved, a warning) without disturbing the bar."""
        if self._enabled:
            self._console.print(text, markup=False)

    def _line(self, step: int) -> str:
        done = step - self._first
        seconds_left = (time.monotonic() - self._started) / done * (self._total - step) if done > 0 else None
        parts = [f"{step}/{self._total}"]
        parts += [text.format(self._seen[name]) for name, text in SHOWN if name in self._seen]
        if seconds_left is not None and step < self._total:
            parts.append(f"ETA {format_duration(seconds_left)}")
        return "  ".join(parts)

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()


class Stages:
    """Progress of work that has stages: call it with (stage, done, total). A line a stage, and one every 5 s.

    label    what is at work; it begins each line
    console  where the lines go; `Stages.on_stderr(label)` keeps them apart from a command's answer
    """

    def __init__(self, enabled: bool, console: Console | None = None, label: str = "prepare") -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._enabled, self._label = enabled, label
        self._shown: dict[str, float] = {}

    @classmethod
    def on_stderr(cls, label: str) -> "Stages":
        """For a command whose answer is on stdout."""
        return cls(True, Console(stderr=True, highlight=False, soft_wrap=True), label)

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        due = stage not in self._shown or done == total or now - self._shown[stage] > 5.0
        if self._enabled and due:
            self._shown[stage] = now
            self._console.print(f"{self._label} {stage}: {done:,}/{total:,}", markup=False)


def format_duration(seconds: float) -> str:
    """90 -> "1:30", 5400 -> "1:30:00", 200000 -> "2d 7:33:20"."""
    whole = round(seconds)
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    clock = f"{hours}:{minutes:02d}:{secs:02d}" if days or hours else f"{minutes}:{secs:02d}"
    return f"{days}d {clock}" if days else clock
