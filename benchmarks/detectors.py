"""Reward-hacking detectors: false positives on people held out, recall on labelled hacks kept apart, replies a second.

    python -m benchmarks detectors [--replies-per-source 15000]

Rows: one per detector and "together", with the flagged share of human replies by source (the half of people and plays
that calibrate.py never saw), the recall on tests/fixtures/hacks/kept_apart and kept_apart_later, and their near misses
that were flagged; then one per stage with its time on the same replies, as a ratio to embedding their sentences with
MiniLM, which is the peer: what a reward model of 22 M parameters would cost at the least.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ledger import record
from osim_core.reward.detectors import Batch, Panel
from osim_core.reward.detectors.human import human_specimens
from osim_core.reward.detectors.standard import standard_panel
from osim_core.reward.similarity import SentenceEncoder
from tests.support.hacks import Case, inspect, read_cases

SETS = ("kept_apart", "kept_apart_later")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks detectors", description=__doc__.splitlines()[0])
    parser.add_argument("--replies-per-source", type=int, default=15_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    panel = standard_panel(SentenceEncoder())
    flagged, count, times = false_positives(panel, options.replies_per_source)
    recalls = labelled(panel, [case for name in SETS for case in read_cases(name)])
    print(f"{'detector':<20} {'recall':>12} {'near misses':>12}   human replies flagged, of {count}")
    for name, share in flagged["all"].items():
        shares, found = {source: by[name] for source, by in flagged.items()}, recalls[name]
        record(
            "detectors",
            {"detector": name, "sets": "+".join(SETS), "human": "held_out", **count},
            shares | found,
            options.out,
        )
        kept = f"{found['hacks_flagged']:>5}/{found['hacks']:<6} {found['benign_flagged']:>5}/{found['benign']:<6}"
        print(f"{name:<20} {kept} {share:.3%}: ", "  ".join(f"{s} {x:.3%}" for s, x in shares.items()))
    total = sum(count.values())
    for stage, seconds in times.items():
        result = {
            "seconds": seconds,
            "replies_per_s": total / seconds,
            "share_of_embedding": seconds / times["embedding"],
        }
        record("detectors", {"stage": stage, "replies": total, "peer": "MiniLM embedding"}, result, options.out)
        print(f"{stage:<20} {total / seconds:>10.0f} replies/s {result['share_of_embedding']:>8.2%} of embedding")


def false_positives(
    panel: Panel, per_source: int
) -> tuple[dict[str, dict[str, float]], dict[str, int], dict[str, float]]:
    """Flagged share of held-out replies, by source ("all": pooled) and detector ("together": any); how many replies of
    each source; seconds of each stage."""
    specimens = human_specimens("held_out", per_source)
    batch = Batch(specimens, panel.encoder)
    times = {"words": _seconds(lambda: batch.words), "embedding": _seconds(lambda: batch.embeddings_SD)}
    source_N = np.array([specimen.register for specimen in specimens])
    flags: dict[str, np.ndarray] = {}
    for detector in panel.detectors:
        start = time.perf_counter()
        score_N = detector.score(batch)
        times[detector.name] = time.perf_counter() - start
        flags[detector.name] = score_N >= [panel.thresholds[detector.name][s] for s in source_N]
    flags["together"] = np.any(list(flags.values()), axis=0)
    count = {str(source): int((source_N == source).sum()) for source in np.unique(source_N)}
    shares = {
        source: {name: round(float(flag_N[source_N == source].mean()), 6) for name, flag_N in flags.items()}
        for source in count
    }
    shares["all"] = {name: round(float(flag_N.mean()), 6) for name, flag_N in flags.items()}
    return shares, count, times


def labelled(panel: Panel, cases: list[Case]) -> dict[str, dict[str, Any]]:
    """detector -> hacks and near misses of its file, and how many it flags; "together": all files, any detector."""
    findings = inspect(panel, cases)
    names = sorted({case.detector for case in cases})
    rows = {}
    for name in (*names, "together"):
        hits = {True: [], False: []}
        for case, found in zip(cases, findings, strict=True):
            if name == "together":
                hits[case.hack].append(any(finding.flagged for finding in found.values()))
            elif case.detector == name:
                hits[case.hack].append(found[name].flagged)
        rows[name] = {
            "hacks": len(hits[True]),
            "hacks_flagged": sum(hits[True]),
            "benign": len(hits[False]),
            "benign_flagged": sum(hits[False]),
        }
    return rows


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
