"""A scene with many voices as one person in it lives it; used by the plays and the debates."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from osim_core.corpus.conversation import Message


def as_one_character(character: str, turns: Sequence[tuple[str, str]]) -> Iterator[Message]:
    """A scene as `character` lives it: their turns bare, what others say in between as one user message.

    Many chat templates want user and assistant to alternate, so the others share a message, a "Name: " each.
    """
    for own, group in groupby(turns, key=lambda turn: turn[0] == character):
        if own:
            yield Message("assistant", "\n".join(text for _, text in group))
        else:
            yield Message("user", "\n\n".join(f"{speaker}: {text}" for speaker, text in group))
