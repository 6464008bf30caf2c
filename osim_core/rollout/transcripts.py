"""Rollouts that a person can read: `<run>/rollouts/<name>.md`, and the same as data in `<name>.jsonl`.

write_transcripts(run / "rollouts", "step-000012", trajectories, [record.to_json() for record, _ in rewards])
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from osim_core.corpus.conversation import Message
from osim_core.corpus.durable import write_durably
from osim_core.missing import Missing, Value
from osim_core.rollout.ledger import Ledger
from osim_core.rollout.runner import Trajectory, groups


def write_transcripts(
    folder: Path, name: str, trajectories: Sequence[Trajectory], notes: Sequence[Mapping[str, Any]]
) -> None:
    """Write both files; each appears complete or not at all.

    notes: one JSON object per trajectory: rewards before and after every adjustment, verdicts, detectors.
    """
    rows = [_row(t, note) for t, note in zip(trajectories, notes, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_durably(folder / f"{name}.jsonl", lines.encode("utf-8", "replace"))
    place = {id(trajectory): row for trajectory, row in zip(trajectories, rows, strict=True)}
    pages = [_page(group, [place[id(trajectory)] for trajectory in group]) for group in groups(trajectories)]
    write_durably(folder / f"{name}.md", "\n".join([f"# {name}\n", *pages]).encode("utf-8", "replace"))


def _row(trajectory: Trajectory, note: Mapping[str, Any]) -> dict[str, Any]:
    outcome = trajectory.outcome
    return {
        "task": trajectory.sample.task,
        "sample": trajectory.sample.id,
        "scenario": trajectory.sample.scenario,
        "replica": trajectory.replica,
        "ended": outcome.ended,
        "versions": sorted(trajectory.versions),
        "values": {name: _value(value) for name, value in outcome.values.items()},
        "notes": dict(note),
        "turns": [asdict(turn) for turn in outcome.turns],
        "ledgers": {name: _ledger(ledger) for name, ledger in trajectory.ledgers.items()},
        "reference": trajectory.sample.reference,
    }


def _value(value: Value) -> float | dict[str, str]:
    return {"missing": value.reason, "detail": value.detail} if isinstance(value, Missing) else value


def _ledger(ledger: Ledger) -> dict[str, Any]:
    own = [logprob for logprob, policy in zip(ledger.logprobs, ledger.is_policy, strict=True) if policy]
    return {
        "messages": [asdict(message) for message in ledger.messages],
        "tokens": len(ledger.tokens),
        "policy_tokens": len(own),
        "mean_logprob": sum(own) / len(own) if own else None,
    }


def _page(group: Sequence[Trajectory], rows: Sequence[Mapping[str, Any]]) -> str:
    """A sample: what was given once, and each replica's reply or dialogue under it."""
    sample = group[0].sample
    parts = [f"## {sample.id}\n"]
    if sample.reference is not None:
        parts.append(f"The person wrote:\n\n{_block(sample.reference)}\n")
    shared = _shared_prompt(group)
    parts += [f"{message.role}:\n\n{_block(message.content)}\n" for message in shared]
    for trajectory, row in zip(group, rows, strict=True):
        versions = ", ".join(map(str, row["versions"])) or "none"
        parts.append(f"### replica {trajectory.replica}: {row['ended']}, weights {versions}\n")
        for name, ledger in trajectory.ledgers.items():
            parts += [f"ledger {name}\n"] if name else []
            parts += [f"{m.role}:\n\n{_block(m.content)}\n" for m in ledger.messages[len(shared) :]]
        parts += [f"- {name}: {json.dumps(value)}" for name, value in {**row["values"], **row["notes"]}.items()]
        parts.append("")
    return "\n".join(parts)


def _shared_prompt(group: Sequence[Trajectory]) -> list[Message]:
    """The messages that all replicas begin with, but for a last one that the policy wrote."""
    if any(trajectory.ledgers.keys() != {""} for trajectory in group):
        return []
    dialogues = [trajectory.ledgers[""].messages for trajectory in group]
    given = [messages[:-1] if messages and messages[-1].role == "assistant" else messages for messages in dialogues]
    return [first for first, *rest in zip(*given, strict=False) if all(message == first for message in rest)]


def _block(text: str) -> str:
    """As code, so that a reply's own markdown is shown and does not act."""
    return "\n".join(f"    {line}" for line in text.split("\n"))
