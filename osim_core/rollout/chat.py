"""A partner behind an OpenAI-compatible server, as a speaker of the runner.

    partner = ChatSpeaker(HttpChat(Transport("partner", base_url, model, Patience(deadline_s=60))))

Requests, retries, deadline and cache are those of the HTTP judge (judge/transport.py). What comes back is a reply only
if it is text; everything else is Missing in its own episode.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from osim_core.judge.transport import Transport
from osim_core.missing import Missing
from osim_core.rollout.runner import ChatRequest
from osim_core.soul.answers import strip_thinking

MALFORMED, EMPTY = "malformed answer", "empty answer"


@dataclass(frozen=True)
class HttpChat:
    """A `Chat` over a transport. Requests carry their own seed, so a server that honours it repeats itself, and the
    transport's cache, where there is one, repeats a killed step's answers."""

    transport: Transport
    temperature: float = 1.0

    def __call__(self, requests: Sequence[ChatRequest]) -> list[str | Missing]:
        """Raises ValueError where the server can answer nobody: a wrong address, model or key."""
        bodies = [
            {
                "messages": [asdict(message) for message in request.messages],
                "max_tokens": request.max_tokens,
                "temperature": self.temperature,
                "seed": request.seed,
            }
            for request in requests
        ]
        return self.transport.ask(bodies, read_reply)


def read_reply(raw: bytes) -> str | Missing:
    """What a chat completion says, without its reasoning; Missing for whatever cannot be dialogue."""
    try:
        text = json.loads(raw)["choices"][0]["message"]["content"]
        said = strip_thinking(text)
        said.encode()  # JSON can spell half of a surrogate pair
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        return Missing(MALFORMED, f"{type(error).__name__}: {raw[:80]!r}")
    return said or Missing(EMPTY, "the answer has no text")
