"""Log-probs under the weights that a run started from, for the kl stream.

    reference = Reference(learner)              # once the starting weights are loaded
    rows = reference.annotate(rows)             # with policy.reference_logprobs_T

With adapters the starting weights are still there, underneath. Otherwise a copy of them waits in host memory and is
swapped in for the forward pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from osim_core.batch import PackedBatch
from osim_core.checkpoint.hf import Weights, load_weights, named_parameters
from osim_core.config import ModelConfig
from osim_core.model.lora import disabled
from osim_core.update.learner import Learner


class Reference:
    """weights: where the starting weights are read from, the same on a resumed run as at its beginning."""

    def __init__(self, learner: Learner, weights: Weights, model: ModelConfig) -> None:
        self.learner = learner
        self.start: list[torch.Tensor] | None = None
        if not learner.lora:
            with self._put_back():
                load_weights(learner.chunks, weights, model)
                self.start = self._copies()

    def annotate(self, rows: Sequence[PackedBatch]) -> list[PackedBatch]:
        """The same rows with the reference's log-probs. Collective."""
        with disabled(self.learner.chunks) if self.start is None else self._put_back():
            if self.start is not None:
                self._fill(self.start)
            logprobs = self.learner.logprobs(rows)
        return [
            replace(row, policy=replace(row.policy, reference_logprobs_T=logprob_T))
            for row, logprob_T in zip(rows, logprobs, strict=True)
        ]

    @contextmanager
    def _put_back(self) -> Iterator[None]:
        """Whatever happens to the weights inside, they are as before afterwards."""
        present = self._copies()
        try:
            yield
        finally:
            self._fill(present)

    def _copies(self) -> list[torch.Tensor]:
        return [parameter.detach().cpu().clone() for _, parameter in named_parameters(self.learner.chunks)]

    @torch.no_grad()
    def _fill(self, values: list[torch.Tensor]) -> None:
        for (_, parameter), value in zip(named_parameters(self.learner.chunks), values, strict=True):
            parameter.copy_(value)
