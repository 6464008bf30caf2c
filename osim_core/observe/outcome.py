"""What a run achieved, from its metrics: the numbers of summary.json."""

from typing import Any

from osim_core.observe.metrics import read_metrics
from osim_core.observe.run_dir import RunDirectory


def midtrain_outcome(run: RunDirectory) -> dict[str, Any]:
    """Held-out loss from the first evaluation to the last, against the n-gram baselines, and the median speed.

    `val/loss` is always taken on the same rows, so first and last compare; `final/loss` covers more of the split and
    is the one to hold against the baselines, which cover all of it.
    """
    rows = read_metrics(run.metrics_file)
    evaluations = [row["val/loss"] for row in rows if "val/loss" in row]
    speeds = sorted(row["perf/tokens_per_second"] for row in rows if "perf/tokens_per_second" in row)
    final = next(row for row in reversed(rows) if "final/loss" in row)
    baselines = {name: value for row in rows for name, value in row.items() if name.startswith("baseline/")}
    return {
        "steps": final["step"],
        **{name: value for name, value in final.items() if name != "step"},
        **baselines,
        "val/loss/first": evaluations[0],
        "val/loss/last": evaluations[-1],
        "val/loss/fall": 1.0 - evaluations[-1] / evaluations[0],
        "perf/tokens_per_second/median": speeds[len(speeds) // 2],
        "skipped_updates": sum(row.get("train/skipped", 0) for row in rows),
        "outcome": {
            "held_out_loss_fell": evaluations[-1] < evaluations[0],
            **{f"beats_{name.removeprefix('baseline/')}": final["final/loss"] < v for name, v in baselines.items()},
        },
    }


def rl_outcome(run: RunDirectory) -> dict[str, Any]:
    """Held-out reward from the first evaluation to the last (the same samples and seeds each time), what the watching
    judge and the likelihood of real replies say, the largest mismatch, and how much was missing."""
    rows = read_metrics(run.metrics_file)
    evaluations = [row for row in rows if "val/reward" in row]
    steps = [row for row in rows if "rl/groups" in row]
    first, last = evaluations[0], evaluations[-1]
    best = max(evaluations, key=lambda row: row["val/reward"])
    watched = {
        f"{name}/{when}": row[name]
        for name in ("val/reward", "val/reward_raw", "val/reward_held_out", "val/likelihood", "val/length_ratio")
        for when, row in (("first", first), ("last", last))
        if name in row
    }
    return {
        "steps": last["step"],
        **watched,
        "val/reward/rise": last["val/reward"] - first["val/reward"],
        "val/reward/best": best["val/reward"],
        "val/reward/best_step": best["step"],
        "rl/mismatch/largest": max((row.get("rl/mismatch", 0.0) for row in steps), default=0.0),
        "alarms": sum(row.get("rl/alarms", 0) + row.get("val/alarms", 0) for row in rows),
        "skipped_updates": sum(row["train/skipped"] for row in steps),
        "outcome": {"held_out_reward_rose": last["val/reward"] > first["val/reward"]},
    }
