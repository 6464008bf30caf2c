"""Judge scoring in Triton: the definition item by item, memory, exact ties, and faults planted in each kernel."""

import math
from dataclasses import fields

import pytest
import torch

from osim_kernels.judge_score import triton as ours
from osim_kernels.judge_score.anchors import anchor_tokens
from osim_kernels.judge_score.gathered import judge_score_gathered
from osim_kernels.proof.sanitizer import KernelFault, checked
from tests.support.judges import RUBRICS, ask, assert_scores_close, by_hand, groups_by_hand
from tests.support.mutate import mutated

pytestmark = pytest.mark.usefixtures("poisoned_empty")


@pytest.mark.parametrize("rubric", RUBRICS)
@pytest.mark.parametrize(("items", "hidden_size"), [(1, 72), (19, 131)])
def test_equals_the_whole_softmax_restricted_to_the_labels(rubric, items, hidden_size, device):
    call = ask(RUBRICS[rubric], items, min_mass=0.15, hidden_size=hidden_size, device=device)
    assert_scores_close(ours.judge_score_triton(**call), by_hand(**call), 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_operands(dtype, device):
    call = ask(RUBRICS["mixed"], 19, dtype=dtype, min_mass=0.15, hidden_size=136, device=device)
    assert_scores_close(ours.judge_score_triton(**call), by_hand(**call), 1e-5)


def test_without_a_mass(device):
    call = ask(RUBRICS["single tokens"], 5, hidden_size=40, device=device) | {"multiplier_I": None, "missing_IJ": None}
    call["hidden_ISD"] = call["hidden_ISD"].nan_to_num()
    scores = ours.judge_score_triton(**call)
    assert scores.mass_IJ.isnan().all() and scores.reward_I.isfinite().all()
    assert_scores_close(scores, by_hand(**call), 1e-5)


def test_an_anchor_that_the_caller_knows_gives_the_same(device):
    call = ask(RUBRICS["mixed"], 3, min_mass=0.15, device=device)
    logprob_ISV = (call["hidden_ISD"] @ call["head_VD"][: call["vocab_size"]].T).log_softmax(dim=-1)
    anchors_S = anchor_tokens(call["labels"], device)
    known_IS = logprob_ISV.gather(2, anchors_S.expand(3, -1)[..., None])[..., 0]
    assert_scores_close(ours.judge_score_triton(**call | {"anchor_logprob_IS": known_IS}), by_hand(**call), 1e-5)


def test_equal_hidden_states_get_equal_bits_wherever_they_stand(device):
    call = ask(RUBRICS["mixed"], 40, dtype=torch.bfloat16, min_mass=0.0, missing=False, device=device)
    call["hidden_ISD"][:] = call["hidden_ISD"][:1].clone()
    reward_I = ours.judge_score_triton(**call | {"multiplier_I": None}).reward_I
    assert reward_I.isfinite().all() and (reward_I == reward_I[0]).all()
    group = ours.group_advantages_triton(reward_I, torch.zeros(40, dtype=torch.int64, device=device), "grpo", 1e-6)
    assert (group.advantage_I == 0).all() and (group.std_I == 0).all()


def groups_case(items, device):
    reward_I = torch.rand(items).where(torch.rand(items) > 0.2, torch.nan)
    reward_I[::11], reward_I[5::13] = 0.25, math.inf
    group_I = torch.randint(-1, 3, (items,)) * 2**33
    group_I[:3], group_I[-1:] = 41, 77  # one that ends with the first step, one of a single item
    return reward_I.to(device), group_I.to(device)


def assert_groups(compute, items, kind, device):
    reward_I, group_I = groups_case(items, device)
    found = compute(reward_I, group_I, kind, 1e-6)
    expected = groups_by_hand(reward_I.double().cpu(), group_I.cpu(), kind, 1e-6)
    for field in fields(found):
        mine, truth = getattr(found, field.name).cpu(), getattr(expected, field.name)
        torch.testing.assert_close(mine, truth.to(mine.dtype), rtol=2e-5, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
@pytest.mark.parametrize("items", [1, 33, 150])
def test_groups_equal_the_formulas(kind, items, device):
    assert_groups(ours.group_advantages_triton, items, kind, device)


def test_int32_groups_and_ties(device):
    reward_I = torch.tensor([0.1] * 13 + [math.nan, 0.5], device=device)
    group_I = torch.tensor([3] * 14 + [-1], dtype=torch.int32, device=device)
    found = ours.group_advantages_triton(reward_I, group_I, "grpo", 1e-6)
    assert (found.advantage_I == 0).all() and (found.std_I == 0).all()
    assert found.size_I.tolist() == [13] * 14 + [1]


def test_no_items(device):
    scores = ours.judge_score_triton(**ask(RUBRICS["single tokens"], 0, device=device))
    group = ours.group_advantages_triton(scores.reward_I, torch.zeros(0, dtype=torch.int64), "rloo", 1e-6)
    assert scores.score_IJ.shape == (0, 4) and group.advantage_I.shape == (0,)


def test_no_access_out_of_bounds_and_no_race():
    call = ask(RUBRICS["mixed"], 19, min_mass=0.15, hidden_size=40)
    known = {"anchor_logprob_IS": torch.randn(19, len(call["labels"].contexts))}
    with checked(**{name: x for name, x in (call | known).items() if isinstance(x, torch.Tensor)}):
        scores = ours.judge_score_triton(**call | known)
        ours.group_advantages_triton(scores.reward_I, torch.arange(19) % 3, "grpo", 1e-6)


# planted faults

SCORE_FAULTS = [
    ("left_D = depth_D < hidden_size - depth", "left_D = depth_D < hidden_size"),
    ("mask=mine_E[:, None] & left_D[None, :]", "mask=real_E[:, None] & left_D[None, :]"),
    ("states, rows.T, total_BE, input_precision", "states, rows.T, total_BE * 0.5, input_precision"),
    ("edge_N = tl.load(parent_of + edge_N, mask=on_path_N, other=-1)", "edge_N = tl.load(parent_of + edge_N) * 0 - 1"),
    ("path_BN -= tl.load(logits", "path_BN += tl.load(logits"),
    ('path_BN = tl.where(known_N[None, :], path_BN, float("-inf"))', "path_BN = path_BN"),
    ("sum_BN * tl.exp(highest_BN - shift_BN)", "sum_BN"),
    ("log_mass_BN / tl.load(temperature + dimension)", "log_mass_BN * tl.load(temperature + dimension)"),
    ("+ bias_N[None, :]", "- bias_N[None, :]"),
    ('calibrated_BN = tl.where(real_N[None, :], calibrated_BN, float("-inf"))', "calibrated_BN = calibrated_BN"),
    ("tl.where(is_first_BN, 0.0, probability_BN)", "probability_BN"),
    ("reason_B = tl.where(mass_B < min_mass", "reason_B = tl.where(mass_B > min_mass"),
    ("tl.min(finite_BN.to(tl.int32), axis=1) == 0", "tl.max(finite_BN.to(tl.int32), axis=1) == 0"),
    ("is_given_B = tl.load(missing + out_B, mask=inside_B, other=0) != 0", "is_given_B = inside_B & False"),
    ("total_B += tl.where(present_B, own_weight * normalised_B, 0.0)", "total_B += own_weight * normalised_B"),
    ("weights_B += tl.where(present_B, own_weight, 0.0)", "weights_B += own_weight"),
    ("kept_B = present_B | (reason_B == _LOW_MASS)", "kept_B = present_B"),
    ('tl.where(tl.abs(multiplier_B) < float("inf"), raw_reward_B * multiplier_B, float("nan"))', "raw_reward_B"),
]


@pytest.mark.parametrize(("old", "new"), SCORE_FAULTS)
def test_faults_planted_in_the_scores_are_caught(old, new):
    mutant = mutated(ours, old, new)
    with pytest.raises((AssertionError, KernelFault)):
        for vocab_start in (0, 2):  # from 2 on, two of the label rows are another rank's: their logits are 0
            call = ask(RUBRICS["mixed"], 9, min_mass=0.15, hidden_size=72)
            call["hidden_ISD"][0, 1, 2] = math.nan
            known_IS = torch.randn(9, len(call["labels"].contexts)) - 4
            shard = {"head_VD": call["head_VD"][vocab_start:].clone(), "vocab_start": vocab_start}
            with checked(hidden_ISD=call["hidden_ISD"], head_VD=shard["head_VD"]):
                mine = mutant.judge_score_triton(**call | shard | {"anchor_logprob_IS": known_IS})
            call["head_VD"][:vocab_start] = 0
            expected = judge_score_gathered(**widened(call) | {"anchor_logprob_IS": known_IS.double()})
            assert_scores_close(mine, expected, 1e-5)


def widened(call):
    return {
        name: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for name, x in call.items()
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(group_B[:, None] == group_K[None, :]) &", "(group_B[:, None] >= group_K[None, :]) &"),
        ('present_K = tl.abs(reward_K) < float("inf")', "present_K = reward_K == reward_K"),
        ('mask=inside_K, other=float("nan")', "mask=inside_K, other=0.0"),
        ("least_B = tl.minimum(least_B, tl.min(reward_BK, axis=1))", "least_B = tl.min(reward_BK, axis=1)"),
        ("tl.maximum(size_B - 1, 1)", "tl.maximum(size_B, 1)"),
        ("tl.where(counted_BK, reward_BK - least_B[:, None], 0.0)", "reward_BK - least_B[:, None]"),
        ("reward_BK - least_B[:, None] - mean_above_B[:, None], 0.0)", "reward_BK - least_B[:, None], 0.0)"),
        ("compared_B = (size_B > 1) &", "compared_B = (size_B > 0) |"),
        ("item_K = first + tl.arange(0, BLOCK_K)", "item_K = tl.arange(0, BLOCK_K)"),
    ],
)
def test_faults_planted_in_the_groups_are_caught(old, new):
    mutant = mutated(ours, old, new)
    with pytest.raises(AssertionError):
        assert_groups(mutant.group_advantages_triton, 150, "grpo", "cpu")
