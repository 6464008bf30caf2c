"""Train and validation by group (participant, play, debate), never by row; used by prepare.py.

A validation loss measured on people whose other chats were trained on flatters the model. So whole groups are held
out, and a conversation that quotes a held-out person in its user turns is left out of training as well.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from osim_core.corpus.conversation import Conversation

Split = Literal["train", "validation"]
MAX_DROPPED_SHARE = 0.01  # a group that would drag more than this out of training is a hub, and always trained


def rank(text: str, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments; it stands in for a random draw."""
    digest = hashlib.sha256(f"{seed}/{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def choose_held_out(conversations: Sequence[Conversation], share: float, seed: int) -> frozenset[str]:
    """Pick `share` of the groups for validation: at least one, never all, none at share 0 or with a single group.

    Hubs are never picked: in chitchat two people took part in a third of all conversations, and holding one of
    them out would drop everyone they talked to.
    """
    groups = sorted({c.group for c in conversations}, key=lambda group: rank(group, seed))
    if share == 0 or len(groups) < 2:
        return frozenset()
    dropped = Counter(other for c in conversations for other in set(c.others))
    eligible = [g for g in groups if dropped[g] <= MAX_DROPPED_SHARE * len(conversations)]
    count = min(max(1, round(share * len(groups))), len(groups) - 1)
    return frozenset((eligible or groups)[:count])


def split_of(conversation: Conversation, held_out: frozenset[str]) -> Split | None:
    """Where a conversation belongs; None means nowhere: its user turns quote a held-out person."""
    if conversation.group in held_out:
        return "validation"
    return None if any(other in held_out for other in conversation.others) else "train"
