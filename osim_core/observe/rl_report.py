"""report.html of a reinforcement learning run: does the reward mean anything?

    python -m osim_core.observe.rl_report runs/rl/latest

Rewards before and after the detectors, the judge that only watches, the likelihood of real replies, train/rollout
mismatch, length and entropy side by side; then what was flagged and missing, and where the transcripts are.
"""

import html
import sys
from collections.abc import Iterator
from pathlib import Path

from osim_core.corpus.durable import write_durably
from osim_core.observe import page
from osim_core.observe.charts import Chart
from osim_core.observe.report import History, figures, open_history

SHOWN_TRANSCRIPTS = 2


def write_rl_report(run_dir: Path) -> Path:
    """Write run_dir/report.html; returns its path.

    Raises ValueError where run_dir is not a run directory, has measured nothing yet, or has damaged metrics.
    """
    run, history, config, summary = open_history(run_dir)
    parts = [
        page.heading(str(config["name"]), run.path, outcome_sentence(history)),
        page.tiles(_tiles(history)),
        figures(_charts(history)),
        _shares(history, "rl/flagged/", "Flagged by detectors"),
        _shares(history, "rl/missing/", "Without a reward"),
        *_transcripts(run.rollouts),
    ]
    if summary:
        parts.append(page.details("Summary", summary))
    parts.append(page.details("Config", config, is_open=True))
    target = run.path / "report.html"
    write_durably(target, page.document(str(config["name"]), parts).encode())
    return target


def outcome_sentence(history: History) -> str:
    """What became of the held-out reward, in one sentence."""
    values = history.values("val/reward")
    if not values:
        return f"{history.last_step:,} steps; no held-out reward measured."
    verb = "rose" if values[-1] > values[0] else "did not rise:"
    sentence = f"Held-out reward {verb} from {values[0]:.3f} to {values[-1]:.3f} in {history.last_step:,} steps"
    if alarms := sum(history.values("rl/alarms")) + sum(history.values("val/alarms")):
        return f"{sentence}, with {alarms:.0f} alarms."
    return f"{sentence}; no alarm."


def _charts(history: History) -> Iterator[Chart]:
    rewards = history.line("rl/reward_raw", "training, before detectors", noisy=True)
    rewards += history.line("rl/reward", "training, after detectors", noisy=True)
    rewards += history.line("rl/reward_held_out", "training samples, watching judge", noisy=True)
    yield Chart("Reward", "of the task's scale", rewards)
    held_out = history.line("val/reward", "held-out samples", markers=True)
    held_out += history.line("val/reward_held_out", "held-out samples, watching judge", markers=True)
    yield Chart("Held-out reward", "of the task's scale", held_out)
    yield Chart("Reward by task", "held-out samples", history.group("val/reward/", markers=True))
    likelihood = history.line("val/likelihood", "real replies", markers=True)
    yield Chart("Likelihood of real replies", "geometric mean per byte", likelihood)
    ratio = history.line("val/length_ratio", "against the real reply", markers=True)
    yield Chart("Length of held-out replies", "closeness in words", ratio)
    mismatch = history.line("rl/mismatch", "mean", noisy=True) + history.line("rl/mismatch_max", "largest", noisy=True)
    yield Chart("Trainer against sampler", "|log p - log p|", mismatch, logarithmic=True)
    yield Chart("Length", "tokens a reply", history.line("rl/length", "replies", noisy=True))
    entropy = history.line("rl/entropy", "sampled tokens", noisy=True)
    yield Chart("Entropy", "nats per token", entropy)
    yield Chart("Diversity", "distinct pairs of tokens", history.line("rl/diversity", "pairs", noisy=True))
    clipped = history.line("rl/clip_low", "below", noisy=True) + history.line("rl/clip_high", "above", noisy=True)
    yield Chart("Clipped tokens", "share", clipped, percent=True)
    yield Chart("Staleness", "steps", history.line("rl/staleness", "oldest sample", noisy=True))
    yield Chart(
        "Gradient norm", "before clipping", history.line("train/grad_norm", "norm", noisy=True), logarithmic=True
    )
    yield Chart("Time", "seconds a step", history.group("perf/", noisy=True))


def _tiles(history: History) -> Iterator[tuple[str, str]]:
    for name, label, form in (
        ("val/reward", "held-out reward", "{:.3f}"),
        ("val/reward_held_out", "by the watching judge", "{:.3f}"),
        ("val/likelihood", "likelihood of real replies", "{:.3f}"),
        ("rl/length", "tokens a reply", "{:,.1f}"),
        ("rl/groups_uniform", "groups that taught nothing", "{:.0%}"),
    ):
        if values := history.values(name):
            yield label, form.format(values[-1])
    if values := history.values("rl/mismatch"):
        yield "largest mean mismatch", f"{max(values):.1e}"


def _shares(history: History, prefix: str, title: str) -> str:
    rows = (
        (line.name, f"{line.values[0]:.1%}", f"{line.values[-1]:.1%}", f"{max(line.values):.1%}")
        for line in sorted(history.group(prefix), key=lambda line: line.name)
    )
    return page.table(title, ("first", "last", "most"), rows)


def _transcripts(folder: Path) -> Iterator[str]:
    """The newest held-out transcripts, and where all of them are."""
    newest = sorted(folder.glob("held-out-*.md"))[-1:]
    for file in newest:
        sections = file.read_text().split("\n## ")[1 : 1 + SHOWN_TRANSCRIPTS]
        shown = "".join(f"<pre>{html.escape(section)}</pre>" for section in sections)
        yield f"<h2>Transcripts</h2><p>From {html.escape(file.name)}; all of them are in rollouts/.</p>{shown}"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m osim_core.observe.rl_report RUN_DIRECTORY")
    try:
        print(write_rl_report(Path(sys.argv[1])))
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
