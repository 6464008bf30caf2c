"""The likelihood of real replies: equal to transformers on one document at a time, normalised as stated."""

import math

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from osim_core.config import LayoutConfig
from osim_core.missing import Missing
from osim_core.reward.likelihood import likelihood, likelihood_reward, packed_references, reference_logprobs
from tests.reward import cases
from tests.support.models import TINY_QWEN3
from tests.support.reference import hugging_face_model

GENERATOR = torch.Generator().manual_seed(11)


def tokens(count):
    return torch.randint(TINY_QWEN3.vocab_size, (count,), generator=GENERATOR).tolist()


PROMPTS = [tokens(n) for n in (7, 1, 13, 7, 30)]
PROMPTS[3] = PROMPTS[0]
REPLIES = [tokens(n) for n in (5, 3, 1, 9, 17)]


@pytest.fixture(scope="module")
def truth():
    model = hugging_face_model(TINY_QWEN3, Qwen3Config, Qwen3ForCausalLM)
    found = []
    with torch.no_grad():
        for prompt, reply in zip(PROMPTS, REPLIES, strict=True):
            logprobs = model(torch.tensor([prompt + reply])).logits[0].log_softmax(-1)
            at = torch.arange(len(prompt) - 1, len(prompt) + len(reply) - 1)
            found.append(logprobs[at, torch.tensor(reply)].numpy())
    return found


@pytest.mark.parametrize("ranks, layout", [(1, LayoutConfig()), (2, LayoutConfig(tensor=2))], ids=["one", "tp2"])
def test_the_trainers_logprobs_of_packed_references_equal_transformers(workers, truth, ranks, layout):
    arguments = {"layout": layout, "prompts": PROMPTS, "replies": REPLIES, "length": 64}
    for found in workers(ranks).run(cases.reference_logprobs, **arguments):
        for mine, other in zip(found, truth, strict=True):
            np.testing.assert_allclose(mine, other, atol=2e-5)


def test_both_means_and_the_reward():
    found = likelihood([-1.0, -2.0, -3.0], "né")  # three bytes and the end of the turn
    assert (found.per_token, found.per_byte) == (-2.0, -1.5)
    assert found.reward == likelihood_reward([-1.0, -2.0, -3.0], "né") == math.exp(-1.5)
    assert likelihood_reward([0.0, 0.0], "ab") == 1.0
    assert likelihood_reward([3e-6], "a") == 1.0


def test_the_reward_grows_with_the_likelihood_and_not_with_shortness():
    draws = np.random.default_rng(0).uniform(-5, 0, (50, 8))
    by_sum = draws[np.argsort(draws.sum(1))]
    rewards = [likelihood_reward(row, "12345678") for row in by_sum]
    assert rewards == sorted(rewards) and len(set(rewards)) == 50
    assert all(0.0 < reward <= 1.0 for reward in rewards)
    # the same nats a byte is the same reward, in few long tokens or many short ones, for a short text or a long one
    assert likelihood_reward([-8.0], "1234567") == likelihood_reward([-1.0] * 8, "1234567") == math.exp(-1)
    assert likelihood_reward([-1.0] * 100, "x" * 99) == pytest.approx(math.exp(-1))


@pytest.mark.parametrize(
    ("logprobs", "reason"),
    [
        (Missing("timeout"), "timeout"),
        ([], "no reference"),
        ([-1.0, float("nan")], "non-finite log-prob"),
        ([float("-inf")], "non-finite log-prob"),
        ([0.5], "non-finite log-prob"),
    ],
)
def test_what_is_no_evidence_is_missing(logprobs, reason):
    assert likelihood_reward(logprobs, "text").reason == reason


def test_a_reply_in_no_row_is_missing():
    rows = packed_references(PROMPTS, REPLIES, 64)
    assert len(rows) > 1
    found = reference_logprobs([torch.arange(64.0)], rows[:1], len(REPLIES))
    kept = [index for index, logprobs in enumerate(found) if not isinstance(logprobs, Missing)]
    assert 0 < len(kept) < len(REPLIES)
    assert [len(found[index]) for index in kept] == [len(REPLIES[index]) for index in kept]


def test_a_reference_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="group 4: a prompt of 30 and a reply of 17 tokens do not fit a row of 32"):
        packed_references(PROMPTS, REPLIES, 32)
