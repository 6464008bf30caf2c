"""Many episodes at once: the asks of all of them batched into one call per speaker and round.

    trajectories = run(starts, {"policy": EngineSpeaker(engine, renderer, context=16_384), "partner": ...}, seed=step)

Every reply has a seed made of (run seed, sample, replica, round, speaker, ledger) alone, so with an engine that honours
seeds an episode comes out the same in any company and order. A reply that could not be had is Missing in its own
episode and nowhere else. It is never text, so a partner's error message cannot become dialogue.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from osim_core.corpus.conversation import Message
from osim_core.corpus.render import Renderer
from osim_core.missing import Missing
from osim_core.rollout.engine import Engine, Sampling
from osim_core.rollout.ledger import Ledger, check_template
from osim_core.soul.episode import POLICY, Ask, Outcome, Reply, Sample, Task


@dataclass(frozen=True, slots=True)
class Start:
    """An episode to play: replica r of a sample. The replicas of one sample are a group."""

    task: Task
    sample: Sample
    replica: int = 0


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A played episode. `ledgers` are the policy's own conversations, by name ("" where it has one)."""

    task: Task
    sample: Sample
    replica: int
    outcome: Outcome
    ledgers: Mapping[str, Ledger]

    @property
    def versions(self) -> frozenset[int]:
        """Weight versions that wrote it."""
        return frozenset(
            version
            for ledger in self.ledgers.values()
            for version, own in zip(ledger.versions, ledger.is_policy, strict=True)
            if own
        )


@dataclass(frozen=True, slots=True)
class Request:
    """A reply that a speaker owes: `conversation` is what its `open` returned, and `answer` extends it in place."""

    conversation: Any
    ask: Ask
    seed: int


class Speaker(Protocol):
    """Somebody who answers, many conversations at once."""

    def open(self) -> Any:
        """A new conversation."""
        ...

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in order; no two requests share a conversation."""
        ...


@dataclass(frozen=True)
class EngineSpeaker:
    """A rollout engine as a speaker; its conversations are token ledgers.

    context      the most tokens of prompt and reply together
    temperature  1.0 for a policy that is to be trained: its log-probs are of the distribution that was sampled
    top_p        likewise 1.0
    """

    engine: Engine
    renderer: Renderer
    context: int
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_template(self.renderer)

    def open(self) -> Ledger:
        return Ledger(renderer=self.renderer, context=self.context)

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        replies: list[Reply | None] = []
        for request in requests:
            missing = request.conversation.extend(request.ask.messages, request.ask.max_tokens)
            replies.append(missing and Reply(missing, "missing"))
        fitting = [index for index, reply in enumerate(replies) if reply is None]
        prompts = [requests[index].conversation.tokens for index in fitting]
        sampling = [self._sampling(requests[index]) for index in fitting]
        completions = self.engine.generate(prompts, sampling) if fitting else []
        for index, completion in zip(fitting, completions, strict=True):
            if isinstance(completion, Missing):
                replies[index] = Reply(completion, "missing")
            else:
                replies[index] = requests[index].conversation.append(completion)
        return replies

    def _sampling(self, request: Request) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=request.ask.max_tokens,
            stop_token_ids=(self.renderer.end_of_turn,),
            seed=request.seed,
        )


class ChatRequest(NamedTuple):
    """What a model of text is asked: it writes the next assistant message."""

    messages: Sequence[Message]
    max_tokens: int
    seed: int


Chat = Callable[[Sequence[ChatRequest]], list[str | Missing]]
"""One text per request, in order; what fails is Missing."""


@dataclass(frozen=True)
class ChatSpeaker:
    """A speaker of text, such as a model behind an HTTP endpoint. An empty answer is none."""

    chat: Chat

    def open(self) -> list[Message]:
        return []

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        for request in requests:
            request.conversation.extend(request.ask.messages)
        texts = self.chat([ChatRequest(r.conversation, r.ask.max_tokens, r.seed) for r in requests])
        return [self._reply(request, text) for request, text in zip(requests, texts, strict=True)]

    def _reply(self, request: Request, text: str | Missing) -> Reply:
        if not isinstance(text, Missing) and not text.strip():
            text = Missing("empty reply")
        if isinstance(text, Missing):
            return Reply(text, "missing")
        request.conversation.append(Message("assistant", text))
        return Reply(text, "stop")


def run(starts: Sequence[Start], speakers: Mapping[str, Speaker], seed: int) -> list[Trajectory]:
    """Play all episodes to their ends; trajectories come in the order of `starts`.

    Raises ValueError for a task with a role that nobody plays, or the same replica of a sample twice.
    """
    _check(starts, speakers)
    live = [_Live(start, start.task.episode(start.sample)) for start in starts]
    waiting = [episode for episode in live if episode.begin()]
    with ThreadPoolExecutor(len(speakers)) as pool:  # different speakers may write at the same time
        while waiting:
            owed: dict[str, list[tuple[_Live, int, Request]]] = {}
            for episode in waiting:
                for place, request in enumerate(episode.requests(speakers, seed)):
                    owed.setdefault(request.ask.speaker, []).append((episode, place, request))
            jobs = {name: pool.submit(speakers[name].answer, [item[2] for item in owed[name]]) for name in owed}
            for name, job in jobs.items():
                for (episode, place, _), reply in zip(owed[name], job.result(), strict=True):
                    episode.replies[place] = reply
            waiting = [episode for episode in waiting if episode.go_on()]
    return [episode.trajectory() for episode in live]


def groups(trajectories: Iterable[Trajectory]) -> list[list[Trajectory]]:
    """Trajectories by task and sample, in order of appearance: the groups over which advantages are taken."""
    found: dict[tuple[str, str], list[Trajectory]] = {}
    for trajectory in trajectories:
        found.setdefault((trajectory.sample.task, trajectory.sample.id), []).append(trajectory)
    return list(found.values())


def reply_seed(*parts: object) -> int:
    """31 bits that depend on nothing but `parts`; engines and servers differ in how large a seed they take."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _check(starts: Sequence[Start], speakers: Mapping[str, Speaker]) -> None:
    for start in starts:
        absent = {POLICY, *start.task.spec.roles} - speakers.keys()
        if absent:
            raise ValueError(
                f"task {start.task.spec.id}: nobody plays {', '.join(sorted(absent))}; name a model for it"
            )
    for (_, id, replica), count in Counter((s.sample.task, s.sample.id, s.replica) for s in starts).items():
        if count > 1:
            raise ValueError(f"replica {replica} of sample {id} is asked for {count} times; number the replicas")


@dataclass
class _Live:
    """An episode under way: the asks it waits for, their replies, and everybody's conversations."""

    start: Start
    episode: Any
    asks: tuple[Ask, ...] = ()
    replies: dict[int, Reply] = field(default_factory=dict)
    rounds: int = 0
    outcome: Outcome | None = None
    conversations: dict[tuple[str, str], Any] = field(default_factory=dict)

    def begin(self) -> bool:
        return self._step(lambda: next(self.episode))

    def go_on(self) -> bool:
        replies = tuple(self.replies[place] for place in range(len(self.asks)))
        self.rounds += 1
        return self._step(lambda: self.episode.send(replies))

    def _step(self, advance: Callable[[], tuple[Ask, ...]]) -> bool:
        """Whether the episode waits for replies."""
        self.replies = {}
        try:
            self.asks = advance()
        except StopIteration as end:
            self.outcome = end.value
            return False
        except Exception as error:
            error.add_note(f"in task {self.start.sample.task}, sample {self.start.sample.id}")
            raise
        keys = {(ask.speaker, ask.ledger) for ask in self.asks}
        assert 0 < len(keys) == len(self.asks), "a step asks at least one speaker, and each conversation once"
        return True

    def requests(self, speakers: Mapping[str, Speaker], seed: int) -> list[Request]:
        sample, requests = self.start.sample, []
        for ask in self.asks:
            key = (ask.speaker, ask.ledger)
            if key not in self.conversations:
                self.conversations[key] = speakers[ask.speaker].open()
            drawn = reply_seed(seed, sample.task, sample.id, self.start.replica, self.rounds, *key)
            requests.append(Request(self.conversations[key], ask, drawn))
        return requests

    def trajectory(self) -> Trajectory:
        ledgers = {ledger: c for (speaker, ledger), c in self.conversations.items() if speaker == POLICY}
        return Trajectory(self.start.task, self.start.sample, self.start.replica, self.outcome, ledgers)
