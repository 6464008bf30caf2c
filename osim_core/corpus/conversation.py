"""The two objects between the sources and the shards: a conversation, and its rendered tokens.

sources/ and files produce `Conversation`; render.py turns each into a `RenderedDocument`; shards.py stores it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. The assistant is always the simulated human, that is, the side which is trained."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A dialogue seen by one participant.

    id       unique in the corpus, such as "chitchat/a07edb12/1"; errors name it
    source   name under which losses are reported
    messages at least one; the roles need not alternate (a chorus of users is fine)
    group    the participant, play or debate: groups, never single rows, are held out for validation
    others   groups whose own words also appear here, in user turns; none of them may be held out if this is to train
    """

    id: str
    source: str
    messages: tuple[Message, ...]
    group: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RenderedDocument:
    """A conversation as tokens.

    tokens       int32 [n]
    loss_spans   int32 [k, 2], half-open, increasing, disjoint; positions of tokens that carry loss AS TARGETS,
                 so the model predicts tokens[t] from tokens[:t] for every t in a span
    turn_starts  int32 [m], increasing; offset of each message's first token; an overlong document is cut here
    """

    id: str
    source: str
    tokens: np.ndarray
    loss_spans: np.ndarray
    turn_starts: np.ndarray

    @property
    def loss_tokens(self) -> int:
        """Number of tokens that carry loss."""
        return int((self.loss_spans[:, 1] - self.loss_spans[:, 0]).sum())
