"""report.html: one self-contained page on a run, for people. Written at the end of a run, or for any run directory:

    python -m osim_core.observe.report runs/midtrain/latest

It reads metrics.jsonl, config.json and, where the run has finished, summary.json; it needs no network to read.
"""

import html
import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from osim_core.corpus.durable import write_durably
from osim_core.observe import page
from osim_core.observe.charts import PALETTE_SIZE, Chart, Line, svg
from osim_core.observe.metrics import read_metrics
from osim_core.observe.run_dir import RunDirectory

BASELINE = "baseline/"


class History:
    """The metrics of a run by name."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.series: dict[str, tuple[list[int], list[float]]] = {}
        for row in rows:
            for name, value in row.items():
                if name != "step" and isinstance(value, (int, float)):
                    steps, values = self.series.setdefault(name, ([], []))
                    steps.append(row["step"])
                    values.append(value)
        self.last_step = max((row["step"] for row in rows), default=0)

    def values(self, name: str) -> list[float]:
        return self.series.get(name, ([], []))[1]

    def line(self, name: str, label: str, **options: bool) -> list[Line]:
        """One line in a list, or none where the run has no such metric."""
        return [Line(label, *self.series[name], **options)] if name in self.series else []

    def group(self, prefix: str, **options: bool) -> list[Line]:
        """A line for every metric below `prefix`, named by what follows it."""
        return [Line(n.removeprefix(prefix), *s, **options) for n, s in self.series.items() if n.startswith(prefix)]

    def baselines(self) -> dict[str, float]:
        """Name -> nats per token of the n-gram models that were scored on the held-out tokens."""
        return {n.removeprefix(BASELINE): v[-1] for n, (_, v) in self.series.items() if n.startswith(BASELINE)}

    def non_finite(self) -> list[tuple[int, str]]:
        """(step, name) of every NaN or infinity, first step first."""
        return sorted(
            (step, name)
            for name, (steps, values) in self.series.items()
            for step, value in zip(steps, values, strict=True)
            if not math.isfinite(value)
        )


def open_history(run_dir: Path) -> tuple[RunDirectory, History, dict[str, Any], dict[str, Any] | None]:
    """A run's metrics, config and, where it has finished, summary. Raises ValueError as `write_report` does."""
    run = RunDirectory.open(run_dir)
    history = History(read_metrics(run.metrics_file))
    if not history.series:
        raise ValueError(f"{run.metrics_file}: no metrics yet; the report needs a run that has taken a step")
    config = json.loads((run.path / "config.json").read_text())
    summary_file = run.path / "summary.json"
    return run, history, config, json.loads(summary_file.read_text()) if summary_file.exists() else None


def write_report(run_dir: Path) -> Path:
    """Write run_dir/report.html; returns its path.

    Raises ValueError where run_dir is not a run directory, has measured nothing yet, or has damaged metrics.
    """
    run, history, config, summary = open_history(run_dir)
    target = run.path / "report.html"
    write_durably(target, _page(run.path, history, config, summary).encode())
    return target


def outcome_sentence(history: History, finished: bool) -> str:
    """What the run achieved, in one sentence."""
    steps = f"{history.last_step:,} steps" + ("" if finished else " so far")
    held_out = history.values("val/loss")
    if not held_out:
        return f"{steps}; no held-out loss measured."
    first, last = held_out[0], held_out[-1]
    verb = "fell" if last < first else "did not fall:"
    sentence = f"Held-out loss {verb} from {first:.3f} to {last:.3f} nats per token ({last / first - 1:+.1%})"
    # the longer final evaluation is the one to hold against baselines, which cover the whole held-out split
    final = (history.values("final/loss") or held_out)[-1]
    compared = [
        f"{'beats' if final < level else 'does not beat'} the {name} baseline ({level:.3f})"
        for name, level in history.baselines().items()
    ]
    return f"{sentence} in {steps}" + (f"; at {final:.3f} it {' and '.join(compared)}." if compared else ".")


def _charts(history: History) -> Iterator[Chart]:
    loss = history.line("train/loss", "training", noisy=True) + history.line("val/loss", "held out", markers=True)
    loss += history.line("final/loss", "held out, final evaluation", markers=True)
    yield Chart("Loss", "nats per token", loss, references=history.baselines())
    yield Chart("Held-out loss by source", "nats per token", history.group("val/loss/", markers=True))
    yield Chart("Training loss by source", "nats per token", history.group("train/loss/", noisy=True))
    speed = history.line("perf/tokens_per_second", "tokens per second", noisy=True)
    yield Chart("Throughput", "tokens per second, all ranks", speed)
    mfu = history.line("perf/mfu", "MFU", noisy=True)
    yield Chart("Model-FLOPs utilisation", "share of peak", mfu, percent=True)
    padding = history.line("data/padding", "padding", noisy=True)
    yield Chart("Padding", "share of row positions", padding, percent=True)
    norm = history.line("train/grad_norm", "gradient norm", noisy=True)
    yield Chart("Gradient norm", "before clipping", norm, logarithmic=True)
    yield Chart("Learning rate", "", history.line("train/learning_rate", "learning rate"))


def _figures(history: History) -> Iterator[tuple[str, str]]:
    """(label, value) of the numbers at the top of the page."""
    for name, label in (("final/loss", "final held-out loss"), ("val/loss", "held-out loss")):
        if values := history.values(name):
            yield label, f"{values[-1]:.3f}"
    if perplexity := history.values("final/loss") or history.values("val/loss"):
        yield "perplexity per token", f"{math.exp(min(perplexity[-1], 700)):,.1f}"
    if speeds := history.values("perf/tokens_per_second"):
        yield "tokens per second, median", f"{_median(speeds):,.0f}"
    if utilisations := history.values("perf/mfu"):
        yield "MFU, median", f"{_median(utilisations):.1%}"
    if seconds := history.values("perf/seconds"):
        yield "time in steps", f"{sum(seconds) / 60:,.1f} min"
    if skipped := sum(history.values("train/skipped")):
        yield "skipped updates", f"{skipped:.0f}"


def _page(path: Path, history: History, config: dict[str, Any], summary: dict[str, Any] | None) -> str:
    name = str(config.get("name", path.name))
    parts = [page.heading(name, path, outcome_sentence(history, summary is not None))]
    if bad := history.non_finite():
        step, metric = bad[0]
        parts.append(
            f'<p class="warning">{len(bad)} non-finite values; the first is {html.escape(metric)} at step {step:,}.</p>'
        )
    parts.append(page.tiles(_figures(history)))
    parts.append(figures(_charts(history)))
    parts.append(_source_table(history))
    if summary:
        parts.append(page.details("Summary", summary))
    parts.append(page.details("Config", config, is_open=True))
    return page.document(name, parts)


def figures(charts: Iterable[Chart]) -> str:
    """The charts that have lines, as a section of the page."""
    drawn = []
    for chart in charts:
        if chart.lines:
            more = len(chart.lines) - PALETTE_SIZE
            note = f"<figcaption>{more} further sources in grey</figcaption>" if more > 0 else ""
            drawn.append(f"<figure><h2>{chart.title}</h2>{svg(chart)}{note}</figure>")
    return f'<section class="charts">{"".join(drawn)}</section>'


def _source_table(history: History) -> str:
    """First and last held-out loss of each source."""
    rows = (
        (line.name, f"{line.values[0]:.3f}", f"{line.values[-1]:.3f}", f"{line.values[-1] / line.values[0] - 1:+.1%}")
        for line in sorted(history.group("val/loss/"), key=lambda line: line.name)
    )
    return page.table("Held-out loss by source", ("first", "last", "change"), rows)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m osim_core.observe.report RUN_DIRECTORY")
    try:
        print(write_report(Path(sys.argv[1])))
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
