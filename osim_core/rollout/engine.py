"""What every rollout engine does: token ids in, sampled token ids with their log-probs and weight version out.

    engine = VllmEngine(folder, EngineOptions())              # engines/vllm_engine.py; HfEngine for parity
    completions = engine.generate([[5, 6, 7]], [Sampling(max_tokens=64, stop_token_ids=(2,), seed=1)])
    push(engine, chunks, model, version=engine.version + 1)   # rollout/push.py: the trainer's weights, streamed

Engines never see text: what was sampled is trained on as it was sampled, without tokenising anything again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from osim_core.missing import Missing

DIED = "engine died"
"""Reason of a Missing whose engine process ended while it worked."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one completion is drawn. Raises ValueError for values that no distribution has.

    temperature     0 takes the likeliest token
    top_p           1.0 for a policy that is to be trained
    max_tokens      the stop token counted
    stop_token_ids  the first of these that is sampled ends the completion, as its last token
    seed            the same seed, prompt and weights give the same completion in one engine, in any company; None draws
                    from the engine's own generator
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_tokens < 1:
            raise ValueError(f"{self}: temperature is 0 or more, top_p above 0 and at most 1, max_tokens at least 1")


@dataclass(frozen=True, slots=True)
class Completion:
    """tokens    sampled ids, never empty; where finish is "stop" the last one is the stop token
    logprobs  fp32 log-prob of each token under the distribution it was drawn from: softmax(logits / temperature) over
              the whole vocabulary, cut to top_p and renormalised. At temperature 0: of softmax(logits).
    version   of the weights that sampled all of it
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    version: int
    finish: Literal["stop", "length"]


class EngineStopped(RuntimeError):
    """The engine died more often than it may. The run can be resumed: nothing that it produced is lost."""


class Engine(Protocol):
    """version: of the weights it holds; 0 for those it was started with."""

    version: int

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling]) -> list[Completion | Missing]:
        """One completion per prompt, in order. Raises ValueError for a prompt the model cannot read."""
        ...

    def score(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...] | Missing]:
        """log p(token | those before it) of every token but the first, at temperature 1: length - 1 floats each."""
        ...

    def push(self, version: int, weights: Iterable[tuple[str, torch.Tensor]], checksum: str) -> None:
        """Replace all weights: Hugging Face names, full tensors, in any order, read one at a time.

        Raises ValueError, and keeps the weights and version it had, for a version that is not exactly one above its
        own, a checksum (push.checksum) that does not fit, a tensor that is missing, unknown or given twice, or a
        shape that is not the model's.
        """
        ...

    def close(self) -> None: ...
