"""The likelihood of what a real person answered, under the policy: a reward without decoding and without a judge.

    rows = packed_references(prompts, replies, sequence_length=8192)
    found = reference_logprobs(learner.logprobs(rows), rows, len(replies))       # per reply, log p of each token
    rewards = [likelihood(logprobs_R, text).reward for logprobs_R, text in zip(found, texts)]

`Learner.logprobs` takes its numbers from fused_linear_logprob, so there are no [tokens, vocabulary] logits, in any
layout; an engine's `score` gives the same for frozen models.

Two means, in nats:
    per token  what training minimises; it depends on the tokenizer, and long words cost one token or four
    per byte   the sum over the UTF-8 bytes of the text, plus one for the end-of-turn token
The reward is per byte, mapped by exp, which is strictly increasing, to (0, 1]: the geometric mean probability of a
byte. Not the sum, which would make the shortest reference the best one; and not per token, so that runs with different
tokenizers compare and that text the tokenizer splits badly (names, typos, other scripts) does not weigh more.

It is the reward of what stands before the reference: as the same text is scored for the whole group, it compares
reasoning, personas or refined contexts that the policy wrote ahead of it, and over steps it is an alarm (alarms.py): a
judge's score that rises while this falls is not about people.

Legend: R tokens of a reply, the end-of-turn token last. T tokens of a row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from osim_core.batch import PackedBatch
from osim_core.missing import Missing, Value
from osim_core.rollout.groups import Group, pack_groups

STREAM = "ce"


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Mean log p in nats of a reference, both ways, and the reward in (0, 1]."""

    per_token: float
    per_byte: float

    @property
    def reward(self) -> float:
        return math.exp(self.per_byte)


def likelihood(logprobs_R: Sequence[float] | Missing, text: str) -> Likelihood | Missing:
    """From the log-probs of a reply's tokens, end-of-turn token included; `text` is what they spell, without it.

    Missing stays Missing, and so is a reference with no token or a log-prob that is not a finite number <= 0 (a
    forward pass gone wrong is no evidence about people).
    """
    if isinstance(logprobs_R, Missing):
        return logprobs_R
    values_R = np.asarray(logprobs_R, np.float64)
    if not values_R.size:
        return Missing("no reference")
    if not np.isfinite(values_R).all() or (values_R > 1e-4).any():  # rounding may lift log 1 a little above 0
        return Missing("non-finite log-prob", f"{values_R.min()} to {values_R.max()}")
    total = min(0.0, float(values_R.sum()))
    return Likelihood(total / len(values_R), total / (len(text.encode()) + 1))


def likelihood_reward(logprobs_R: Sequence[float] | Missing, text: str) -> Value:
    """The reward alone."""
    found = likelihood(logprobs_R, text)
    return found if isinstance(found, Missing) else found.reward


def packed_references(
    prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], sequence_length: int
) -> list[PackedBatch]:
    """Rows that hold prompt and reply of each index, every token of the replies weighted.

    Raises ValueError for a pair that does not fit a row, or an empty prompt or reply.
    """
    groups = [
        Group(prompt=prompt, replies=[reply], weights=[[1.0] * len(reply)], id=index)
        for index, (prompt, reply) in enumerate(zip(prompts, replies, strict=True))
    ]
    return pack_groups(groups, sequence_length, STREAM)


def reference_logprobs(
    logprobs: Sequence[torch.Tensor], rows: Sequence[PackedBatch], count: int
) -> list[np.ndarray | Missing]:
    """float32 [R] of each of `count` replies: log p of its tokens, cut out of the rows' [T]; Missing where no row has
    it (on a rank whose rows hold others)."""
    found: list[np.ndarray | Missing] = [Missing("not scored", "in no row of this rank")] * count
    for logprob_T, row in zip(logprobs, rows, strict=True):
        borders = row.cu_seqlens.tolist()
        for segment, (index, parent) in enumerate(zip(row.documents_S.tolist(), row.parents_S.tolist(), strict=True)):
            if parent >= 0:
                # the segment opens with the prompt's last token, and its last entry predicts nothing
                found[index] = logprob_T[borders[segment] : borders[segment + 1] - 1].numpy()
    return found
