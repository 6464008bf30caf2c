"""Next turns of real people: one turn of each chitchat conversation and side, for the tasks that simulate it.

Test people are those whom midtraining holds out by default (corpus/prepare.py), so a policy that was midtrained here
has never read a word of theirs. Validation people are drawn from the rest in the same way. A chat of a training person
that quotes one of either is left out.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache

from osim_core.config import DataConfig
from osim_core.corpus.conversation import Conversation
from osim_core.corpus.prepare import SEED
from osim_core.corpus.sources import SOURCES
from osim_core.corpus.split import choose_held_out, rank, split_of
from osim_core.soul.episode import Split

VALIDATION_SEED = SEED + 1


@cache
def by_person() -> dict[Split, tuple[Conversation, ...]]:
    """All chitchat conversations, by split. Raises ValueError if the package is not installed."""
    share = DataConfig().validation_share
    everybody = list(SOURCES["chitchat"].load(Counter()))
    test_people = choose_held_out(everybody, share, SEED)
    others = [c for c in everybody if split_of(c, test_people) == "train"]
    validation_people = choose_held_out(others, share, VALIDATION_SEED)
    return {
        "train": tuple(c for c in others if split_of(c, validation_people) == "train"),
        "validation": tuple(c for c in others if split_of(c, validation_people) == "validation"),
        "test": tuple(c for c in everybody if split_of(c, test_people) == "validation"),
    }


def one_turn_each(split: Split, usable: Callable[[Conversation, int], bool]) -> Iterator[tuple[Conversation, int]]:
    """(conversation, index of an assistant turn) with `usable` turns only, at most one of each conversation.

    Which one is drawn by its id, so it changes only if `usable` refuses it.
    """
    for conversation in by_person()[split]:
        turns = [
            index
            for index, message in enumerate(conversation.messages)
            if message.role == "assistant" and usable(conversation, index)
        ]
        if turns:
            yield conversation, min(turns, key=lambda index: rank(f"{conversation.id}/{index}", SEED))
