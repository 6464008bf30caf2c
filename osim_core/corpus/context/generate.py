"""Dialogues in, conversations with their social contexts out.

    for conversation, row in contextualise(dialogues, RuleWriter(), store, report): ...

A row without a context gives a conversation without a system message and says "missing"; nothing is made up for it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import batched
from typing import Any

from osim_core.corpus.context.leakage import leakage
from osim_core.corpus.context.store import ContextStore, Row, content_key
from osim_core.corpus.context.writers import Draft, Request, Writer
from osim_core.corpus.conversation import Conversation
from osim_core.corpus.sources.dialogue import Dialogue, take_side

BATCH = 256  # requests given to the writer at once, and committed together


@dataclass
class Tally:
    """One source's contexts: rows by status, missing ones by fault, and tokens, all and newly bought."""

    status: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    cached: int = 0
    retried: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    new_prompt_tokens: int = 0
    new_completion_tokens: int = 0
    untold: int = 0
    leakage: float = 0.0  # summed over written rows
    worst_leakage: float = 0.0


class ContextReport:
    """Tallies by source. Prices are per million tokens, in whatever currency they are given."""

    def __init__(self, prompt_price: float = 0.0, completion_price: float = 0.0) -> None:
        self.prompt_price, self.completion_price = prompt_price, completion_price
        self.tallies: dict[str, Tally] = {}

    def add(self, source: str, row: Row, cached: bool) -> None:
        """Count one row."""
        tally = self.tallies.setdefault(source, Tally())
        tally.status[row.status] += 1
        tally.cached += cached
        tally.retried += row.attempts > 1
        tally.prompt_tokens += row.prompt_tokens
        tally.completion_tokens += row.completion_tokens
        tally.untold += row.untold
        if not cached:
            tally.new_prompt_tokens += row.prompt_tokens
            tally.new_completion_tokens += row.completion_tokens
        if row.status == "missing":
            tally.faults[row.fault] += 1
        elif row.status == "written":
            tally.leakage += row.leakage
            tally.worst_leakage = max(tally.worst_leakage, row.leakage)

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-ready row per source. `cost` is of all attempts that stand behind the rows, `new_cost` of this run;
        attempts whose tokens the server did not tell are in `untold_attempts` and in no cost."""
        rows = []
        for source, tally in self.tallies.items():
            written = tally.status["written"]
            rows.append(
                {
                    "source": source,
                    **{name: tally.status[name] for name in ("written", "missing", "stated")},
                    "missing_by": dict(sorted(tally.faults.items())),
                    "cached": tally.cached,
                    "retried": tally.retried,
                    "prompt_tokens": tally.prompt_tokens,
                    "completion_tokens": tally.completion_tokens,
                    "untold_attempts": tally.untold,
                    "cost": self._cost(tally.prompt_tokens, tally.completion_tokens),
                    "new_cost": self._cost(tally.new_prompt_tokens, tally.new_completion_tokens),
                    "mean_leakage": tally.leakage / written if written else 0.0,
                    "worst_leakage": tally.worst_leakage,
                }
            )
        return rows

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6


def contextualise(
    dialogues: Iterable[Dialogue], writer: Writer, store: ContextStore, report: ContextReport, batch: int = BATCH
) -> Iterator[tuple[Conversation, Row]]:
    """A conversation and its row for every trained speaker of every dialogue, in order.

    What the store has is taken from there; the rest goes to the writer in batches and is committed before it is given
    out. A writer's own error (a server that is down) passes through, with all earlier batches kept.
    """
    sides = (
        (dialogue, speaker)
        for dialogue in dialogues
        for speaker in dialogue.trained
        if any(turn.speaker == speaker for turn in dialogue.turns)
    )
    for some in batched(sides, batch):
        keys = [content_key(writer.identity, *side) for side in some]
        rows = {
            key: Row(key, "stated") if dialogue.system is not None else store.get(key)
            for key, (dialogue, _) in zip(keys, some, strict=True)
        }
        cached = {key for key, row in rows.items() if row and row.status != "stated"}
        fresh = _write({key: Request(*side) for key, side in zip(keys, some, strict=True) if not rows[key]}, writer)
        store.put(list(fresh.values()))
        for key, (dialogue, speaker) in zip(keys, some, strict=True):
            row = rows[key] or fresh[key]
            report.add(dialogue.source, row, key in cached)
            context = row.social_context()
            system = dialogue.system if row.status == "stated" else context.render() if context else ""
            yield take_side(dialogue, speaker, system or ""), row


def _write(requests: Mapping[str, Request], writer: Writer) -> dict[str, Row]:
    """A row per request, by key: drafts that are no context, or leak, are written again until `writer.attempts`."""
    rows = {key: Row(key, "missing") for key in requests}
    pending = dict(requests)
    for attempt in range(1, writer.attempts + 1):
        drafts = writer.write(list(pending.values())) if pending else []
        again = {}
        for (key, request), draft in zip(pending.items(), drafts, strict=True):
            rows[key] = _judge(rows[key], request, draft, writer.stated)
            if rows[key].fault in ("schema", "leak"):
                again[key] = replace(request, attempt=attempt, rejected=rows[key].reason)
        pending = again
    return rows


def _judge(row: Row, request: Request, draft: Draft, stated: bool) -> Row:
    row = replace(
        row,
        attempts=row.attempts + 1,
        prompt_tokens=row.prompt_tokens + (draft.prompt_tokens or 0),
        completion_tokens=row.completion_tokens + (draft.completion_tokens or 0),
        untold=row.untold + (draft.prompt_tokens is None or draft.completion_tokens is None),
    )
    if draft.context is None:
        return replace(row, fault=draft.fault, reason=draft.reason)
    found = leakage(draft.context.text(), request.dialogue, request.speaker)
    if found.too_much and not stated:
        return replace(row, fault="leak", reason=found.explain(), leakage=found.overlap)
    return replace(row, status="written", context=draft.context.to_json(), fault="", reason="", leakage=found.overlap)
