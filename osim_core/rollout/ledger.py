"""Token ledgers: one speaker's side of a dialogue as an extend-only token list, token in and token out.

    ledger = Ledger(renderer, context=16_384)
    if (missing := ledger.extend(ask.messages, ask.max_tokens)) is None:
        reply = ledger.append(engine.generate([ledger.tokens], ...)[0])

Nothing is tokenised twice. What the engine sampled stays as it was sampled, and what others wrote is put behind it in
the frames of the chat template, so the ids equal the tokenizer's rendering of the same messages wherever the engine
sampled the ids that the tokenizer would have chosen. That includes what the template puts after a sampled end-of-turn
token and before the next header (in ChatML a newline), which the model was trained on and never samples.

A reply that was cut at its longest length has no end-of-turn token. If the dialogue goes on, the ledger adds one as
context, with no loss: the next speaker sees a finished turn, as the template would write it, and the policy is not
trained to have ended there. If the dialogue ends with it, nothing is added.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from osim_core.corpus.conversation import Message
from osim_core.corpus.render import Renderer
from osim_core.missing import Missing
from osim_core.rollout.engine import Completion
from osim_core.soul.episode import Reply

TOO_LONG = "too long"
CONTEXT_VERSION = -1


@dataclass(kw_only=True)
class Ledger:
    """context: the most tokens that prompt and reply may take together.

    Per token, lists of one length:
    tokens     ids
    is_policy  whether the engine sampled it; the loss mask
    logprobs   log p when it was sampled; 0.0 for context, never read
    versions   the weights that sampled it; CONTEXT_VERSION for context

    messages holds the same dialogue as text.
    """

    renderer: Renderer
    context: int
    tokens: list[int] = field(default_factory=list)
    is_policy: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)

    @property
    def prompt_length(self) -> int:
        """Tokens before the first sampled one; all of them if nothing was sampled."""
        return self.is_policy.index(True) if True in self.is_policy else len(self.tokens)

    def extend(self, messages: Sequence[Message], max_tokens: int) -> Missing | None:
        """Put `messages` and the header of a reply behind what is there.

        Where that and a reply of `max_tokens` do not fit the context, nothing changes and Missing(TOO_LONG) is
        returned: cutting the beginning off would take the instructions first. Raises ValueError for a template that
        is not prefix-stable.
        """
        known, whole = len(self.messages), [*self.messages, *messages]
        added = self.renderer.continuation(whole, known).tolist()
        end = self.renderer.end_of_turn
        if known and self.tokens[-1] != end:
            added.insert(0, end)
        needed = len(self.tokens) + len(added) + max_tokens
        if needed > self.context:
            return Missing(TOO_LONG, f"{needed} tokens with a reply of {max_tokens}; the context holds {self.context}")
        self._put(added, False, [0.0] * len(added), CONTEXT_VERSION)
        self.messages = whole
        return None

    def append(self, completion: Completion) -> Reply:
        """Put a sampled reply behind what is there; returns it as text.

        Raises ValueError for a completion that breaks the engine's contract: it would be trained on.
        """
        tokens, end = list(completion.tokens), self.renderer.end_of_turn
        stopped = completion.finish == "stop"
        if not tokens or len(tokens) != len(completion.logprobs):
            raise ValueError(f"the engine returned {len(tokens)} tokens with {len(completion.logprobs)} log-probs")
        if (tokens[-1] == end) != stopped or end in tokens[:-1]:
            raise ValueError(
                f"the engine says {completion.finish!r}, but the reply's last token is {tokens[-1]}, and a reply ends "
                f"with token {end} and nowhere else; pass stop_token_ids=({end},)"
            )
        if not all(math.isfinite(logprob) for logprob in completion.logprobs):
            raise ValueError("the engine returned a log-prob that is not finite")
        self._put(tokens, True, completion.logprobs, completion.version)
        text = self.renderer.tokenizer.decode(tokens[:-1] if stopped else tokens)
        self.messages.append(Message("assistant", text))
        return Reply(text, completion.finish)

    def _put(self, tokens: Sequence[int], is_policy: bool, logprobs: Sequence[float], version: int) -> None:
        self.tokens += tokens
        self.is_policy += [is_policy] * len(tokens)
        self.logprobs += logprobs
        self.versions += [version] * len(tokens)


def check_template(renderer: Renderer) -> None:
    """Raises ValueError, before anything is sampled, if dialogues of this template cannot be kept as ledgers."""
    first, second = Message("user", "a"), Message("user", "b")
    renderer.continuation([first, Message("assistant", "a"), second], known=2)
