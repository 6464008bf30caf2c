"""Which side of a user's row is the simulated human, declared per data source; used by sources/files.py.

In stored chats the human is usually the "user". Training needs the human as the assistant, so most sources swap.
`ROLES` is the whole declaration; DataConfig.roles adds to it or overrides it, by exact name or by "prefix*":

    python recipes/midtrain.py tiny-cpu --data.paths chats.jsonl --data.roles helpdesk keep "reddit_*" swap

The built-in names and what they do follow the published OdysSim midtraining rows (arXiv 2606.14199).
"""

from collections.abc import Callable, Mapping

from osim_core.corpus.conversation import Message

Messages = tuple[Message, ...]
KEPT_TURNS = 20  # of very long experiment records; earlier turns become one block of context
SWAPPED = {"user": "assistant", "assistant": "user", "system": "system"}


def keep(messages: Messages) -> Messages:
    """As stored: the assistant turns already are the human's."""
    return messages


def keep_with_system(messages: Messages) -> Messages:
    """As stored, with an empty system message where there is none, so that it looks like the RL tasks."""
    return messages if messages[0].role == "system" else (Message("system", ""), *messages)


def swap(messages: Messages) -> Messages:
    """User and assistant change places. Tool messages are left out: the human never saw what they hold."""
    return tuple(Message(SWAPPED[m.role], m.content) for m in messages if m.role != "tool")


def fold_and_swap(messages: Messages) -> Messages:
    """`swap` for records of hundreds of trials: all but the last turns become one block of context, without loss.

    The block goes in front of the first kept turn, which is context too.
    """
    system = tuple(m for m in messages[:1] if m.role == "system")
    turns = swap(messages[len(system) :])
    if len(turns) <= KEPT_TURNS:
        return system + turns
    earlier, first, recent = turns[:-KEPT_TURNS], turns[-KEPT_TURNS], turns[1 - KEPT_TURNS :]
    speaker = {"assistant": "You", "user": "Other", "system": "System"}
    block = "\n".join(f"{speaker[m.role]}: {m.content}" for m in (*earlier, first))
    return (*system, Message("user", f"Earlier:\n{block}"), *recent)


TRANSFORMS: dict[str, Callable[[Messages], Messages]] = {
    "keep": keep,
    "keep_with_system": keep_with_system,
    "swap": swap,
    "fold_and_swap": fold_and_swap,
}

ROLES: dict[str, str] = {
    # people talking to an AI, or to each other with the trained person stored as the user
    "wildchat*": "swap",
    "lmsys*": "swap",
    "oasst*": "swap",
    "prism*": "swap",
    "alignx*": "swap",
    "nectar*": "swap",
    "hh_rlhf*": "swap",
    "education_dialogue*": "swap",
    "mathdial*": "swap",
    "studychat*": "swap",
    "convokit_*": "swap",
    "dialogue": "swap",
    "dailydialog*": "swap",
    "cornell_movie*": "swap",
    "empathetic*": "swap",
    "coser*": "swap",
    # a stimulus (assistant) and a person's answer (user)
    "humanual*": "swap",
    "experiment*": "swap",
    "socsci210*": "swap",
    "psych101*": "fold_and_swap",
    # the assistant already is the side to train
    "human_llm*": "keep_with_system",
    "tom_*": "keep_with_system",
    "soc_*": "keep_with_system",
    "rm_r1_sft*": "keep_with_system",
    "chat": "keep",
    "step35_flash_sft": "keep",
    "sotopia*": "keep",
}


class RoleTable:
    """The built-in declarations plus `extra`, which wins. Raises ValueError for a transform that does not exist."""

    def __init__(self, extra: Mapping[str, str]) -> None:
        for source, name in extra.items():
            if name not in TRANSFORMS:
                raise ValueError(f"data.roles: {source!r} -> {name!r} is not one of {', '.join(TRANSFORMS)}")
        self._tables = (dict(extra), ROLES)

    def transform(self, source: str) -> Callable[[Messages], Messages] | None:
        """The transform of a data source: its exact name first, then the longest prefix; None if undeclared."""
        for table in self._tables:
            if source in table:
                return TRANSFORMS[table[source]]
            prefixes = [key for key in table if key.endswith("*") and source.startswith(key[:-1])]
            if prefixes:
                return TRANSFORMS[table[max(prefixes, key=len)]]
        return None
