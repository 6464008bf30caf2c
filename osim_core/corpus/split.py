"""Train and validation by group (participant, play, debate), never by row; used by prepare.py and stages/divide.py.

A validation loss measured on people whose other chats were trained on flatters the model. So whole groups are held
out, and a conversation that quotes a held-out person in its user turns is left out of training as well.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from osim_core.corpus.conversation import Conversation

Split = Literal["train", "validation"]
MAX_DROPPED_SHARE = 0.01  # a group that would drag more than this out of training is a hub, and always trained


def rank_bits(text: str, seed: int) -> int:
    """64 bits that depend on nothing but their arguments; they stand in for a random draw, and for the text."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{text}".encode()).digest()[:8], "big")


def rank(text: str, seed: int) -> float:
    """`rank_bits` as a number in [0, 1)."""
    return rank_bits(text, seed) / 2**64


def hold_out(groups_C: np.ndarray, others_O: np.ndarray, share: float) -> np.ndarray:
    """Pick `share` of the groups for validation: at least one, never all, none at share 0 or with a single group.

    groups_C: uint64 [C] the rank of each conversation's group. others_O: uint64 [O] the ranks of the others in all
    conversations, each once a conversation. Returns uint64 [H], ascending; cost: sorting both.

    Hubs are never picked: in chitchat two people took part in a third of all conversations, and holding one of
    them out would drop everyone they talked to.
    """
    groups_G = np.unique(groups_C)
    if share == 0 or len(groups_G) < 2:
        return np.zeros(0, np.uint64)
    named_N, count_N = np.unique(others_O, return_counts=True)
    place_G = np.minimum(np.searchsorted(named_N, groups_G), max(len(named_N) - 1, 0))
    dropped_G = np.where(named_N[place_G] == groups_G, count_N[place_G], 0) if len(named_N) else np.zeros(len(groups_G))
    eligible = groups_G[dropped_G <= MAX_DROPPED_SHARE * len(groups_C)]
    count = min(max(1, round(share * len(groups_G))), len(groups_G) - 1)
    return (eligible if len(eligible) else groups_G)[:count]


def choose_held_out(conversations: Sequence[Conversation], share: float, seed: int) -> frozenset[str]:
    """`hold_out` by name, for conversations in memory."""
    names = {rank_bits(c.group, seed): c.group for c in conversations}
    groups = np.array([rank_bits(c.group, seed) for c in conversations], np.uint64)
    others = np.array([rank_bits(other, seed) for c in conversations for other in set(c.others)], np.uint64)
    return frozenset(names[group] for group in hold_out(groups, others, share).tolist())


def split_of(conversation: Conversation, held_out: frozenset[str]) -> Split | None:
    """Where a conversation belongs; None means nowhere: its user turns quote a held-out person."""
    if conversation.group in held_out:
        return "validation"
    return None if any(other in held_out for other in conversation.others) else "train"
