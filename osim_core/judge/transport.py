"""Many requests to one OpenAI-compatible server, each of which gets an answer or a reason within the step's deadline.

    transport = Transport("judge", base_url, model, Patience(deadline_s=60))
    answers = transport.ask([body, ...], parse)         # parse(bytes) -> an answer, or Missing where it is none

A request is repeated after what may pass: timeouts, lost connections, 408, 429, 5xx, and answers that `parse` rejects.
One that is slow gets a twin (a hedge); the first good answer counts. Answers that were accepted are kept in a cache on
disk, if there is one, as they arrive: a killed step pays for nothing twice.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import random
from typing import Any

import httpx

from osim_core import endpoint
from osim_core.judge.cache import AnswerCache
from osim_core.missing import Missing

TIMEOUT, CONNECTION, RATE_LIMITED = "timeout", "connection", "rate limited"
SERVER_ERROR, REFUSED, OVERSIZED, DEADLINE = "server error", "refused", "oversized answer", "deadline"


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How a server is asked.

    concurrency  requests in flight; hedges come on top
    rate         requests started a second at most; None: any number
    timeout_s    of one request
    hedge_s      after which a request that has no answer gets a twin; None: never
    tries        of one request
    pause_s      before the second try; doubled each time, with up to as much again at random
    deadline_s   for all requests of a step: what is not answered by then is Missing("deadline")
    """

    concurrency: int = 64
    rate: float | None = None
    timeout_s: float = 60.0
    hedge_s: float | None = 20.0
    tries: int = 4
    pause_s: float = 0.5
    deadline_s: float = 120.0

    def __post_init__(self) -> None:
        positive = (self.concurrency, self.rate or 1, self.timeout_s, self.hedge_s or 1, self.tries, self.deadline_s)
        if min(positive) <= 0 or self.pause_s < 0:
            raise ValueError(f"judge patience: every limit must be above 0, got {self}")


@dataclass
class Traffic:
    """What a transport has done so far. `requests` were sent, retries and hedges included; `failures` counts, by
    reason, attempts that failed, most of which a later one made good; `untold` answers had no token counts."""

    asked: int = 0
    cached: int = 0
    requests: int = 0
    retries: int = 0
    hedges: int = 0
    hedges_won: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    untold: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def cost(self, prompt_price: float, completion_price: float) -> float:
        """In the currency of the prices, which are for a million tokens."""
        return (self.prompt_tokens * prompt_price + self.completion_tokens * completion_price) / 1e6


class _Failed(Exception):
    """An attempt without an answer; `again` if the next one may have one, `pause` if the server said when."""

    def __init__(self, missing: Missing, again: bool, pause: str | None = None) -> None:
        self.missing, self.again, self.pause = missing, again, pause


class Transport:
    """Requests to `{base_url}/chat/completions`.

    what          names it in messages
    key_variable  environment variable with the bearer token; unset or empty: none is sent

    Raises ValueError for an address that is not http(s).
    """

    def __init__(
        self,
        what: str,
        base_url: str,
        model: str,
        patience: Patience,
        *,
        key_variable: str = "OPENAI_API_KEY",
        cache: AnswerCache | None = None,
    ) -> None:
        self.url = endpoint.chat_url(base_url, what)
        self.what, self.model, self.patience, self.key_variable = what, model, patience, key_variable
        self.cache, self.traffic = cache, Traffic()
        self._next_start = 0.0

    def ask[Answer](
        self, bodies: Sequence[dict[str, Any]], parse: Callable[[bytes], Answer | Missing]
    ) -> list[Answer | Missing]:
        """One answer per body, in order, by the deadline. Raises ValueError where no request can succeed: 401, 403,
        404."""
        return asyncio.run(self._ask(bodies, parse))

    async def _ask(self, bodies, parse) -> list:
        slots = asyncio.Semaphore(self.patience.concurrency)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.patience.concurrency)
        async with httpx.AsyncClient(limits=limits, timeout=self.patience.timeout_s) as client:
            tasks = [asyncio.create_task(self._answer(client, slots, body, parse)) for body in bodies]
            if not tasks:
                return []
            done, late = await asyncio.wait(
                tasks, timeout=self.patience.deadline_s, return_when=asyncio.FIRST_EXCEPTION
            )
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            failed = [error for task in done if (error := task.exception())]  # asyncio logs those nobody looks at
            if failed:
                raise failed[0]
        if late:
            self.traffic.failures[DEADLINE] += len(late)
        detail = f"no answer within {self.patience.deadline_s} s"
        return [Missing(DEADLINE, detail) if task in late else task.result() for task in tasks]

    async def _answer(self, client: httpx.AsyncClient, slots: asyncio.Semaphore, body: dict[str, Any], parse):
        """The parsed answer to one body, or the last attempt's reason."""
        self.traffic.asked += 1
        content = json.dumps({"model": self.model, **body}, sort_keys=True).encode()
        known = None if self.cache is None else self.cache.get(self.url, content)
        if known is not None and not isinstance(answer := parse(known), Missing):
            self.traffic.cached += 1
            return answer
        for attempt in range(self.patience.tries):
            pause = self.patience.pause_s * 2**attempt * (1 + random())
            try:
                async with slots:
                    raw, answer = await self._hedged(client, content, parse)
            except _Failed as failed:
                missing = failed.missing
                if not failed.again:
                    break
                pause = endpoint.asked_pause(failed.pause, pause)
            else:
                if self.cache is not None:
                    self.cache.put(self.url, content, raw)
                return answer
            if attempt + 1 < self.patience.tries:
                self.traffic.retries += 1
                await asyncio.sleep(min(pause, endpoint.MAX_PAUSE_S))
        return missing

    async def _hedged(self, client: httpx.AsyncClient, content: bytes, parse) -> tuple[bytes, Any]:
        """The attempt, or its twin if that is the first to succeed. Raises _Failed when both have failed."""
        first = asyncio.create_task(self._attempt(client, content, parse))
        tasks = [first]
        try:
            await asyncio.wait(tasks, timeout=self.patience.hedge_s)
            if not first.done():
                self.traffic.hedges += 1
                tasks.append(asyncio.create_task(self._attempt(client, content, parse)))
            waiting = set(tasks)
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if task.exception() is None:
                        self.traffic.hedges_won += task is not first
                        return task.result()
            raise tasks[-1].exception()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _attempt(self, client: httpx.AsyncClient, content: bytes, parse) -> tuple[bytes, Any]:
        """One request: the bytes of its answer and what `parse` makes of them. Raises _Failed."""
        try:
            await self._turn()
            self.traffic.requests += 1
            async with asyncio.timeout(self.patience.timeout_s):  # httpx's own limits each wait for one more byte
                raw = await self._post(client, content)
            self._count_tokens(raw)
            answer = parse(raw)
            if isinstance(answer, Missing):
                raise _Failed(answer, again=True)
            return raw, answer
        except (TimeoutError, httpx.TimeoutException) as error:
            failed = _Failed(Missing(TIMEOUT, f"no answer in {self.patience.timeout_s} s"), again=True)
            cause = error
        except httpx.RequestError as error:  # refused and broken connections, answers that no decoder takes
            failed = _Failed(Missing(CONNECTION, f"{type(error).__name__}: {error}"), again=True)
            cause = error
        except _Failed as error:
            failed, cause = error, error.__cause__
        self.traffic.failures[failed.missing.reason] += 1
        raise failed from cause

    async def _turn(self) -> None:
        """Wait until the rate allows one more request."""
        if self.patience.rate is not None:
            now = time.monotonic()
            start = max(now, self._next_start)
            self._next_start = start + 1 / self.patience.rate
            await asyncio.sleep(start - now)

    async def _post(self, client: httpx.AsyncClient, content: bytes) -> bytes:
        request_headers = endpoint.headers(self.key_variable)
        async with client.stream("POST", self.url, content=content, headers=request_headers) as response:
            body = bytearray()
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > endpoint.MAX_ANSWER_BYTES:
                    detail = f"more than {endpoint.MAX_ANSWER_BYTES} bytes"
                    raise _Failed(Missing(OVERSIZED, detail), again=True)
        if response.status_code == 200:
            return bytes(body)
        detail = f"HTTP {response.status_code}: {body[:300].decode('utf-8', 'replace').strip()}"
        if response.status_code in endpoint.FATAL:
            raise ValueError(f"{self.what} at {self.url}, model {self.model}: {detail}")
        if not endpoint.passes(response.status_code):
            raise _Failed(Missing(REFUSED, detail), again=False)
        reason = RATE_LIMITED if response.status_code == 429 else SERVER_ERROR
        raise _Failed(Missing(reason, detail), again=True, pause=response.headers.get("Retry-After"))

    def _count_tokens(self, raw: bytes) -> None:
        try:
            usage = json.loads(raw)["usage"]
            prompt, completion = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        except (ValueError, KeyError, TypeError):
            self.traffic.untold += 1
            return
        self.traffic.prompt_tokens += prompt
        self.traffic.completion_tokens += completion
