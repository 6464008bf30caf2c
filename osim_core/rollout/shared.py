"""An engine that two threads use: rollouts ahead in one, pushes and evaluations in the other. One call at a time.

A push therefore waits for the replies that are being sampled, never for whole episodes, and an episode may go on with
newer weights than it began with: its ledger has the version of every token.
"""

import threading
from collections.abc import Iterable, Sequence

import torch

from osim_core.missing import Missing
from osim_core.rollout.engine import Completion, Engine, Sampling


class SharedEngine:
    """`engine`, with its calls taken in turn."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self._turn = engine, threading.Lock()

    @property
    def version(self) -> int:
        return self.engine.version

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling]) -> list[Completion | Missing]:
        with self._turn:
            return self.engine.generate(prompts, sampling)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...] | Missing]:
        with self._turn:
            return self.engine.score(sequences)

    def push(self, version: int, weights: Iterable[tuple[str, torch.Tensor]], checksum: str) -> None:
        with self._turn:
            self.engine.push(version, weights, checksum)

    def close(self) -> None:
        with self._turn:
            self.engine.close()
