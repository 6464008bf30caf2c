"""Contexts from any server with the OpenAI chat completions interface (vLLM, SGLang, llama.cpp, a hosted one).

Requests run in threads, and each is repeated after timeouts, lost connections, 408, 429 and 5xx, with growing pauses or
the one that the server asks for. A server that answers nobody for a while stops the run, since going on would only
turn the corpus into missing rows.
"""

import http.client
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar

from osim_core import endpoint
from osim_core.corpus.context import prompt
from osim_core.corpus.context.schema import JSON_SCHEMA, SchemaError, parse
from osim_core.corpus.context.writers import Draft, Request

RETRY_TEMPERATURE = 0.7  # the first attempt is greedy; the same draft again would be rejected again


class EndpointDown(RuntimeError):
    """The server gave no answer to many requests in a row."""


@dataclass(kw_only=True)
class EndpointWriter:
    """Writes through `{base_url}/chat/completions`.

    model        as the server calls it
    key_variable environment variable with the bearer token; unset or empty: none is sent
    concurrency  requests in flight
    timeout_s    of one request
    tries        of one request before it counts as a transport failure
    pause_s      before the second try; doubled each time, with up to as much again at random
    max_failures transport failures in a row, over all rows, that stop the run with EndpointDown

    Raises ValueError for an address that is not http(s), and when the server answers 401, 403 or 404.
    """

    base_url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 16
    timeout_s: float = 120.0
    tries: int = 5
    pause_s: float = 1.0
    max_tokens: int = 1024
    attempts: int = 3
    max_failures: int = 20
    stated: ClassVar[bool] = False
    identity: str = field(init=False)
    _url: str = field(init=False)
    _failures: int = field(init=False, default=0)
    _last: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self._url = endpoint.chat_url(self.base_url, "context endpoint")
        self.identity = f"chat {self.model} prompt {prompt.VERSION} tokens {self.max_tokens}"

    def write(self, requests: Sequence[Request]) -> list[Draft]:
        """One draft per request, in order. Raises EndpointDown, or ValueError where no request can succeed."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(self._draft, request) for request in requests]
            try:
                return [future.result() for future in futures]
            except (EndpointDown, ValueError):
                pool.shutdown(cancel_futures=True)
                raise

    def _draft(self, request: Request) -> Draft:
        reason = ""
        for attempt in range(self.tries):
            if self._failures >= self.max_failures:
                raise EndpointDown(
                    f"context endpoint {self.base_url}: {self._failures} requests in a row got no answer "
                    f"({self._last}); finished batches are kept, so run it again when the server is back"
                )
            pause = self.pause_s * 2**attempt * (1 + random.random())
            try:
                return self._answer(self._post(request))
            except urllib.error.HTTPError as error:
                detail = error.read(500).decode("utf-8", "replace").strip()
                reason = f"HTTP {error.code}: {detail}"
                if error.code in endpoint.FATAL:
                    raise ValueError(f"context endpoint {self.base_url}, model {self.model}: {reason}") from error
                if not endpoint.passes(error.code):
                    self._failures = 0
                    return Draft(None, "refused", reason)
                pause = endpoint.asked_pause(error.headers.get("Retry-After"), pause)
            except (OSError, http.client.HTTPException) as error:  # timeouts, refused and broken connections
                reason = f"{type(error).__name__}: {error}"
            if attempt + 1 < self.tries:
                time.sleep(min(pause, endpoint.MAX_PAUSE_S))
        self._failures += 1
        self._last = reason
        return Draft(None, "transport", f"no answer in {self.tries} tries; the last: {reason}", None, None)

    def _post(self, request: Request) -> bytes:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": prompt.messages(request),
            "max_tokens": self.max_tokens,
            "temperature": RETRY_TEMPERATURE if request.attempt else 0.0,
            "seed": request.attempt,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "social_context", "schema": JSON_SCHEMA, "strict": True},
            },
        }
        request_ = urllib.request.Request(self._url, json.dumps(body).encode(), endpoint.headers(self.key_variable))
        with urllib.request.urlopen(request_, timeout=self.timeout_s) as response:
            return response.read(endpoint.MAX_ANSWER_BYTES)

    def _answer(self, body: bytes) -> Draft:
        self._failures = 0
        try:
            answer = json.loads(body)
            content = answer["choices"][0]["message"]["content"]
            usage = answer.get("usage") or {}
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return Draft(None, "schema", f"not a chat completion: {body[:80]!r}", None, None)
        tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not isinstance(content, str):
            return Draft(None, "schema", "the answer has no text", *tokens)
        try:
            return Draft(parse(content), "", "", *tokens)
        except SchemaError as error:
            return Draft(None, "schema", str(error), *tokens)
