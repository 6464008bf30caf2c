"""The policy and kl streams in the learner: the same update in every layout and packing, and what it must equal."""

from dataclasses import replace

import pytest
import torch

from osim_core.config import LayoutConfig
from osim_core.loss.streams import Objective
from osim_core.rollout.groups import Group, pack_groups, padding_row
from osim_kernels.policy_loss import DAPO, GRPO, GSPO
from tests.parallel.test_layouts import worst_difference
from tests.support.models import TINY_QWEN3
from tests.update import policy_cases as cases

GENERATOR = torch.Generator().manual_seed(11)
ONE = LayoutConfig(distributed_optimizer=False)


def random_group(prompt: int, replies: list[int], id: int) -> Group:
    def tokens(count: int) -> list[int]:
        return torch.randint(TINY_QWEN3.vocab_size, (count,), generator=GENERATOR).tolist()

    def floats(count: int, low: float, high: float) -> list[float]:
        return (low + (high - low) * torch.rand(count, generator=GENERATOR)).tolist()

    return Group(
        prompt=tokens(prompt),
        replies=[tokens(length) for length in replies],
        weights=[[float(i % 4 != 2) for i in range(length)] for length in replies],  # as if others spoke between
        id=id,
        advantages=floats(len(replies), -1.5, 1.5),
        logprobs=[floats(length, -5.0, -3.0) for length in replies],
    )


GROUPS = [random_group(9, [5, 12, 1], 0), random_group(1, [7, 4], 1), random_group(14, [6, 3, 9], 2)]
WHOLE = pack_groups(GROUPS, 96, "policy", "kl")
CAPPED = Objective(policy=replace(DAPO, sampler_cap=2.0, dual_clip=3.0), kl_coefficient=0.1)
SEQUENCE = Objective(policy=replace(GSPO, clip_low=0.5, clip_high=0.5), kl_coefficient=0.1)


@pytest.fixture(scope="module", params=[CAPPED, SEQUENCE], ids=["token", "sequence"])
def truth(request, workers):
    [result] = workers(1).run(
        cases.update, layout=ONE, rows=WHOLE, settings=request.param, reference_shift=0.3, steps=3
    )
    return request.param, result


def assert_same(result: dict, truth: dict) -> None:
    assert result["values"] == pytest.approx(truth["values"], abs=1e-5)
    assert result["norms"] == pytest.approx(truth["norms"], rel=1e-4)
    for mine, other in zip(result["policy"], truth["policy"], strict=True):
        assert mine == pytest.approx(other, rel=1e-4, abs=1e-5)
    difference, name = worst_difference(result["gradients"], truth["gradients"])
    assert difference < 2e-5, name


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (2, LayoutConfig(tensor=2, sequence_parallel=True)),
        (2, LayoutConfig(context=2, distributed_optimizer=False)),
        (2, LayoutConfig(pipeline=2, distributed_optimizer=False)),
    ],
    ids=["tp2-sp", "cp2", "pp2"],
)
def test_every_layout_makes_the_same_update(workers, truth, ranks, layout):
    settings, expected = truth
    for result in workers(ranks).run(
        cases.update, layout=layout, rows=cases.poisoned(WHOLE), settings=settings, reference_shift=0.3, steps=3
    ):
        assert_same(result, expected)
        for mine_T, other_T in zip(result["logprobs"], expected["logprobs"], strict=True):
            torch.testing.assert_close(mine_T, other_T, rtol=0, atol=2e-5)


def test_two_ranks_with_unequal_rows_make_the_same_update(workers, truth):
    settings, expected = truth
    rows = [pack_groups([group], 64, "policy", "kl")[0] for group in GROUPS]
    rows.append(padding_row(64, "policy", "kl", policy=True))
    for result in workers(2).run(cases.update, layout=ONE, rows=rows, settings=settings, reference_shift=0.3, steps=3):
        assert_same(result, expected)


def test_the_first_update_is_the_policy_gradient(workers):
    rows = pack_groups(GROUPS, 96, "policy")
    [result] = workers(1).run(cases.update, layout=ONE, rows=rows, settings=Objective(policy=GRPO))
    [expected] = workers(1).run(cases.weighted_cross_entropy, rows=rows)
    total = sum(float(row.weights["policy"].sum()) for row in rows)
    surrogate = -sum(float((row.weights["policy"] * row.policy.advantages_T).sum()) for row in rows) / total
    assert result["values"] == pytest.approx([surrogate], abs=1e-6)  # every ratio is 1
    assert result["norms"] == pytest.approx([expected["norm"]], rel=1e-5)
    for name, gradient in result["gradients"].items():
        torch.testing.assert_close(gradient, expected["gradients"][name] * expected["scale"], rtol=1e-4, atol=1e-6)
    assert result["policy"][0]["ratio"] == 1.0 and result["policy"][0]["k3"] == 0.0


def test_kl_to_ones_own_weights_is_zero_with_no_gradient_and_grows_by_its_formula(workers):
    rows = pack_groups(GROUPS, 96, "kl")
    settings = Objective(kl_coefficient=0.5)
    [same] = workers(1).run(cases.update, layout=ONE, rows=rows, settings=settings, reference_shift=0.0)
    assert same["values"] == [0.0] and same["norms"][0] < 1e-6
    [shifted] = workers(1).run(cases.update, layout=ONE, rows=rows, settings=settings, reference_shift=0.4)
    assert shifted["values"] == pytest.approx([0.5 * (2.718281828**0.4 - 1.4)], rel=1e-4)
    assert shifted["policy"] == [None] and shifted["norms"][0] > 1e-3


def test_the_reference_is_the_start_of_the_run_also_for_a_run_that_goes_on(workers):
    rows = pack_groups(GROUPS, 96, "policy")
    [result] = workers(1).run(cases.reference, rows=rows, changed=True)
    assert result["weights_unchanged"]
    for start_T, now_T, reference_T in zip(result["start"], result["now"], result["reference"], strict=True):
        assert torch.equal(start_T, reference_T) and (now_T - start_T).abs().max() > 1e-3


def test_a_group_longer_than_a_row_is_split_and_nothing_is_lost():
    group = random_group(10, [9, 20, 4, 15], 7)
    rows = pack_groups([group], 40, "policy")
    assert [row.num_tokens for row in rows] == [40] * len(rows) and len(rows) == 2
    weights = sum(sum(reply) for reply in group.weights)
    assert sum(float(row.weights["policy"].sum()) for row in rows) == weights
    carried = sorted(
        (advantage, logprob)
        for row in rows
        for advantage, logprob, weight in zip(
            row.policy.advantages_T.tolist(), row.policy.sampler_logprobs_T.tolist(), row.weights["policy"], strict=True
        )
        if weight
    )
    expected = sorted(
        (advantage, logprob)
        for advantage, logprobs, weights in zip(group.advantages, group.logprobs, group.weights, strict=True)
        for logprob, weight in zip(logprobs, weights, strict=True)
        if weight
    )
    assert carried == [pytest.approx(pair, rel=1e-6) for pair in expected]
    with pytest.raises(ValueError, match="prompt of 10 and a reply of 20 tokens do not fit a row of 24"):
        pack_groups([group], 24, "policy")


@pytest.mark.parametrize(
    ("advantages", "logprobs", "complaint"),
    [
        ([1.0], None, "come together"),
        ([1.0, 2.0], [[0.0]], "needs an advantage"),
        ([1.0], [[0.0, 0.0]], "one log-prob"),
    ],
)
def test_bad_columns_are_named(advantages, logprobs, complaint):
    with pytest.raises(ValueError, match=complaint):
        Group([1], [[2]], [[1.0]], id=3, advantages=advantages, logprobs=logprobs)
