"""An engine whose replies are a pure function of prompt and seed, so that runs can be compared token by token."""

import random
from collections.abc import Iterable, Sequence

import torch

from osim_core.missing import Missing
from osim_core.rollout.engine import Completion, Sampling


class SeededEngine:
    """Words drawn by the request's seed and its prompt; every `missing_every`-th seed gets no answer."""

    def __init__(self, tokenizer, missing_every: int = 0, version: int = 3) -> None:
        self.tokenizer, self.missing_every, self.version = tokenizer, missing_every, version
        self.calls: list[int] = []
        self.seeds: list[int] = []

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling]) -> list[Completion | Missing]:
        self.calls.append(len(prompts))
        self.seeds += [wanted.seed for wanted in sampling]
        return [self._one(list(prompt), wanted) for prompt, wanted in zip(prompts, sampling, strict=True)]

    def _one(self, prompt: list[int], wanted: Sampling) -> Completion | Missing:
        if self.missing_every and wanted.seed % self.missing_every == 0:
            return Missing("engine died")
        rng = random.Random(f"{wanted.seed} {prompt}")
        text = " ".join(rng.choices(("yes", "no", "well", "ok then", "café"), k=rng.randint(1, 12)))
        tokens = [*self.tokenizer.encode_batch([text])[0].tolist(), *wanted.stop_token_ids]
        cut = len(tokens) > wanted.max_tokens
        tokens = tokens[: wanted.max_tokens]
        return Completion(
            tokens=tuple(tokens),
            logprobs=tuple(-rng.random() for _ in tokens),
            version=self.version,
            finish="length" if cut else "stop",
        )

    def score(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...] | Missing]:
        raise NotImplementedError

    def push(self, version: int, weights: Iterable[tuple[str, torch.Tensor]], checksum: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass
