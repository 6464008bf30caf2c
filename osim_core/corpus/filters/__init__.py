"""Filters of conversations: each keeps, drops, edits or labels, and each one's effect is a row of the report.

    kept = apply([Language(("en",)), Length(), Balance(), Scrub(), Toxicity()], conversations, report)
    for conversation, labels in kept: ...
    report.rows()   # per source and filter: seen, kept, dropped by reason, labels, edits

They look at one conversation at a time and hold no state, so any number of processes gives the same result; the
reports of parts add up with `FilterReport.merge`. A dropped conversation is not shown to the filters after the one
that drops it, so the order is part of the configuration.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from osim_core.corpus.conversation import Conversation


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a filter says about one conversation.

    dropped  the reason, a fixed word or two per kind; "" if it stays
    labels   {name: value}, few distinct values per name, as they are counted in the report
    edited   the conversation with its text changed, if it was, and `edits`, {kind: how many replacements}
    """

    dropped: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    edited: Conversation | None = None
    edits: Mapping[str, int] = field(default_factory=dict)


KEEP = Outcome()


class Filter(Protocol):
    """A callable object with a name for the report."""

    name: str

    def __call__(self, conversation: Conversation) -> Outcome: ...


@dataclass
class Effect:
    """What one filter did to one source, in conversations except `edits` (replacements)."""

    seen: int = 0
    kept: int = 0
    edited: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)  # "name=value"
    edits: Counter[str] = field(default_factory=Counter)


class FilterReport:
    """The effects of filters, by source and filter, in the order in which they first met."""

    def __init__(self) -> None:
        self.effects: dict[tuple[str, str], Effect] = {}

    def add(self, source: str, name: str, outcome: Outcome) -> None:
        """Count one conversation."""
        effect = self.effects.setdefault((source, name), Effect())
        effect.seen += 1
        effect.kept += not outcome.dropped
        effect.edited += outcome.edited is not None
        if outcome.dropped:
            effect.dropped[outcome.dropped] += 1
        effect.labels.update(f"{label}={value}" for label, value in outcome.labels.items())
        effect.edits.update(outcome.edits)

    def merge(self, other: "FilterReport") -> None:
        """Add the counts of another part of the corpus."""
        for key, part in other.effects.items():
            effect = self.effects.setdefault(key, Effect())
            effect.seen += part.seen
            effect.kept += part.kept
            effect.edited += part.edited
            effect.dropped += part.dropped
            effect.labels += part.labels
            effect.edits += part.edits

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-ready row per source and filter; counters sorted, so that equal reports are equal text."""
        return [
            {
                "source": source,
                "filter": name,
                "seen": effect.seen,
                "kept": effect.kept,
                "edited": effect.edited,
                **{what: dict(sorted(getattr(effect, what).items())) for what in ("dropped", "labels", "edits")},
            }
            for (source, name), effect in self.effects.items()
        ]


def apply(
    filters: Sequence[Filter], conversations: Iterable[Conversation], report: FilterReport
) -> Iterator[tuple[Conversation, dict[str, str]]]:
    """Conversations that no filter drops, as edited, each with its labels. Raises ValueError for two filters of one
    name, whose rows in the report would be mixed."""
    names = [each.name for each in filters]
    if len(set(names)) < len(names):
        raise ValueError(f"filters: the names {', '.join(names)} are not all different")
    return _apply(filters, conversations, report)


def _apply(
    filters: Sequence[Filter], conversations: Iterable[Conversation], report: FilterReport
) -> Iterator[tuple[Conversation, dict[str, str]]]:
    for conversation in conversations:
        labels: dict[str, str] = {}
        for each in filters:
            outcome = each(conversation)
            report.add(conversation.source, each.name, outcome)
            if outcome.dropped:
                break
            labels |= outcome.labels
            conversation = outcome.edited or conversation
        else:
            yield conversation, labels


def words_of(conversation: Conversation, role: str) -> str:
    """What one side says, a line per message."""
    return "\n".join(message.content for message in conversation.messages if message.role == role)
