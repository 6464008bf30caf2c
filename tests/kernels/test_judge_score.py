"""Judge scoring: equals the whole softmax restricted to the labels, written out item by item; missing never counts.

The Triton and CUDA forms are in test_judge_score_triton.py and test_judge_score_cuda.py, on this file's cases. Shape
suffixes: I items, J dimensions, S contexts, D hidden, V vocabulary.
"""

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from osim_kernels import registry
from osim_kernels.judge_score import (
    GIVEN,
    LOW_MASS,
    NON_FINITE,
    PRESENT,
    DimensionLabels,
    JudgeLabels,
    gathered,
    group_advantages,
    judge_score,
    swapped_verdict,
)
from osim_kernels.judge_score.anchors import anchor_tokens
from osim_kernels.judge_score.gathered import group_advantages_gathered, judge_score_gathered
from osim_kernels.judge_score.reference import group_advantages_reference, judge_score_reference
from tests.support.judges import RUBRICS, ask, assert_scores_close, by_hand, groups_by_hand
from tests.support.mutate import mutated

pytestmark = pytest.mark.usefixtures("poisoned_empty")

FORMS = {"reference": judge_score_reference, "gathered": judge_score_gathered}
GROUP_FORMS = {"reference": group_advantages_reference, "gathered": group_advantages_gathered}
form = pytest.mark.parametrize("form", FORMS)


@form
@pytest.mark.parametrize("rubric", RUBRICS)
@pytest.mark.parametrize("items", [1, 7])
@pytest.mark.parametrize("min_mass", [None, 0.15])
def test_equals_the_whole_softmax_restricted_to_the_labels(form, rubric, items, min_mass):
    call = ask(RUBRICS[rubric], items, dtype=torch.float64, min_mass=min_mass)
    assert_scores_close(FORMS[form](**call), by_hand(**call), 1e-12)


@pytest.mark.parametrize("rubric", RUBRICS)
def test_fp32_stays_within_1e_5_of_the_truth(rubric):
    call = ask(RUBRICS[rubric], 33, min_mass=0.15, hidden_size=257)
    assert_scores_close(judge_score_gathered(**call), by_hand(**call), 1e-5)


@st.composite
def rubrics(draw):
    """Up to four dimensions, each a random prefix-free set of sequences of up to three tokens, dealt out to labels."""
    dimensions = []
    for name in draw(st.lists(st.sampled_from("abcd"), min_size=1, unique=True)):
        tokens = st.lists(st.integers(0, 8), min_size=1, max_size=3).map(tuple)
        sequences = draw(st.lists(tokens, min_size=1, max_size=12, unique=True))
        variants = [one for one in sequences if not any(one != x and one[: len(x)] == x for x in sequences)]
        count = draw(st.integers(1, len(variants)))
        dimensions.append(
            DimensionLabels(
                name,
                labels=tuple(tuple(variants[k::count]) for k in range(count)),
                values=tuple(draw(st.lists(st.integers(-3, 9), min_size=count, max_size=count))),
                worst=-4.0,
                best=draw(st.sampled_from([-5.5, 10.0])),
                weight=draw(st.sampled_from([0.0, 0.3, 1.0])),
                temperature=draw(st.sampled_from([0.2, 1.0, 3.0])),
            )
        )
    return JudgeLabels(tuple(dimensions))


@settings(max_examples=40, deadline=None)
@given(rubrics())
def test_any_rubric(labels):
    torch.manual_seed(0)
    call = ask(labels, 4, dtype=torch.float64, min_mass=0.05, vocab=11)
    for compute in FORMS.values():
        assert_scores_close(compute(**call), by_hand(**call), 1e-10)


@form
def test_an_anchor_that_the_caller_knows_gives_the_same(form):
    call = ask(RUBRICS["mixed"], 5, dtype=torch.float64, min_mass=0.15)
    logprob_ISV = (call["hidden_ISD"] @ call["head_VD"][: call["vocab_size"]].T).log_softmax(dim=-1)
    anchors_S = anchor_tokens(call["labels"], "cpu")
    known_IS = logprob_ISV.gather(2, anchors_S.expand(5, -1)[..., None])[..., 0]
    assert_scores_close(FORMS[form](**call | {"anchor_logprob_IS": known_IS}), by_hand(**call), 1e-12)


# what is missing


@form
def test_every_reason_is_named_and_the_rest_of_the_item_still_counts(form):
    labels = RUBRICS["mixed"]
    call = ask(labels, 6, dtype=torch.float64, min_mass=0.15, missing=False)
    rows = [s for s, (j, _) in enumerate(labels.contexts) if j == 1]
    call["hidden_ISD"][1, rows[0], 3] = math.nan
    call["hidden_ISD"][2, rows[0], 3] = math.inf
    call["missing_IJ"] = torch.zeros(6, len(labels.dimensions), dtype=torch.bool)
    call["missing_IJ"][3, 1] = True
    call["hidden_ISD"][3, rows] = math.nan  # given as missing, so its rows are never looked at
    outsider = call["vocab_size"] - 1
    assert outsider not in {token for _, token in labels.edges}
    call["hidden_ISD"][4] = call["head_VD"][outsider] * 5  # the judge wants to say something else altogether
    scores = FORMS[form](**call)
    assert scores.reason_IJ[:, 1].tolist() == [
        scores.reason_IJ[0, 1], NON_FINITE, NON_FINITE, GIVEN, LOW_MASS, scores.reason_IJ[5, 1],
    ]  # fmt: skip
    assert scores.mass_IJ[4, 1] < 0.15 and scores.mass_IJ[1:4, 1].isnan().all()
    assert scores.score_IJ[1:5, 1].isnan().all() and (scores.reason_IJ[4] == LOW_MASS).all()
    assert scores.reward_I[4].isnan() and scores.raw_reward_I[4].isnan()
    assert_scores_close(scores, by_hand(**call), 1e-12)


@form
def test_a_low_mass_can_be_the_threshold_itself(form):
    call = ask(RUBRICS["yes or no"], 3, dtype=torch.float64, min_mass=0.0, missing=False)
    mass = FORMS[form](**call).mass_IJ[1, 0].item()
    assert FORMS[form](**call | {"min_mass": mass}).reason_IJ[1, 0] == PRESENT
    assert FORMS[form](**call | {"min_mass": math.nextafter(mass, 1)}).reason_IJ[1, 0] == LOW_MASS


@form
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_detector_makes_the_reward_missing_and_keeps_the_raw_one(form, broken):
    call = ask(RUBRICS["mixed"], 3, dtype=torch.float64, missing=False)
    call["multiplier_I"] = torch.tensor([1.0, broken, 0.0], dtype=torch.float64)
    scores = FORMS[form](**call)
    assert scores.raw_reward_I.isfinite().all()
    assert scores.reward_I[0] == scores.raw_reward_I[0] and scores.reward_I[1].isnan() and scores.reward_I[2] == 0


# exact answers


def certain(form, z, **options):
    """Scores of one dimension of three labels, valued 0, 1 and 2, whose logits are z."""
    labels = JudgeLabels((DimensionLabels("d", labels=(((0,),), ((1,),), ((2,),)), values=(0.0, 1.0, 2.0), **options),))
    hidden_ISD = torch.tensor([[z]], dtype=torch.float64)
    return FORMS[form](
        hidden_ISD, torch.eye(3, dtype=torch.float64), labels, min_mass=0.5, anchor_logprob_IS=None, missing_IJ=None,
        multiplier_I=None, group=None, vocab_start=0, vocab_size=3,
    )  # fmt: skip


@form
def test_a_uniform_judge(form):
    scores = certain(form, [5.0, 5.0, 5.0])
    found = (scores.score_IJ, scores.normalised_IJ, scores.entropy_IJ, scores.margin_IJ, scores.mass_IJ)
    assert [x.item() for x in found] == pytest.approx([1.0, 0.5, math.log(3), 0.0, 1.0], abs=1e-14)


@form
def test_a_certain_judge_far_from_zero(form):
    scores = certain(form, [-1e4, 1e4, -1e4])
    found = (scores.score_IJ, scores.entropy_IJ, scores.margin_IJ, scores.mass_IJ)
    assert [x.item() for x in found] == [1.0, 0.0, 1.0, 1.0]
    assert scores.label_logprob_IL.tolist() == [[-2e4, 0.0, -2e4]]


@form
def test_temperature_and_bias_act_on_the_log_mass(form):
    z, bias = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64), (0.5, 0.0, -0.7)
    q = (z / 1.7 + torch.tensor(bias, dtype=torch.float64)).softmax(dim=0)
    scores = certain(form, z.tolist(), temperature=1.7, bias=bias)
    assert scores.label_logprob_IL[0].tolist() == pytest.approx(q.log().tolist(), abs=1e-14)
    assert scores.mass_IJ.item() == pytest.approx(1.0)


@form
def test_a_scale_may_run_downwards(form):
    assert certain(form, [0.0, 99.0, 0.0], worst=5.0, best=0.0).normalised_IJ.item() == pytest.approx(0.8)


@form
def test_variants_add_and_tokens_multiply(form):
    """P(label) by enumeration of two-token answers over a vocabulary of six."""
    labels = JudgeLabels((DimensionLabels("d", (((0,), (1, 2)), ((1, 3), (4, 0), (4, 5))), (0.0, 1.0)),))
    assert labels.contexts == ((0, ()), (0, (1,)), (0, (4,)))
    call = ask(labels, 4, dtype=torch.float64, min_mass=0.0, vocab=6, padding=0, missing=False)
    p_ISV = (call["hidden_ISD"] @ call["head_VD"].T).softmax(dim=-1)
    first = p_ISV[:, 0, 0] + p_ISV[:, 0, 1] * p_ISV[:, 1, 2]
    second = p_ISV[:, 0, 1] * p_ISV[:, 1, 3] + p_ISV[:, 0, 4] * (p_ISV[:, 2, 0] + p_ISV[:, 2, 5])
    scores = FORMS[form](**call)
    torch.testing.assert_close(scores.mass_IJ[:, 0], first + second)
    torch.testing.assert_close(scores.score_IJ[:, 0], second / (first + second))


@form
def test_a_dimension_of_weight_0_is_scored_and_not_rewarded(form):
    labels = RUBRICS["mixed"]
    silent = replace(
        labels, dimensions=(labels.dimensions[0], *(replace(d, weight=0.0) for d in labels.dimensions[1:]))
    )
    scores = FORMS[form](**ask(silent, 4, dtype=torch.float64, missing=False) | {"multiplier_I": None})
    assert torch.equal(scores.reward_I, scores.normalised_IJ[:, 0]) and scores.score_IJ.isfinite().all()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("row_E = tables.token_E - vocab_start", "row_E = tables.token_E + 1"),
        ("logits_IE - logits_IE[:, tables.anchor_E]", "logits_IE"),
        ("range(tables.depth - 1)", "range(0)"),
        (".where(tables.leaf_LR >= 0, -torch.inf)", ""),
        ("log_mass_IL / tables.temperature_J", "log_mass_IL * tables.temperature_J"),
        (" + tables.bias_L", ""),
        ("_by_dimension(calibrated_IL, tables, -torch.inf)", "_by_dimension(calibrated_IL, tables, 0.0)"),
        ("first_two_IJ2[..., 0] - first_two_IJ2[..., 1]", "first_two_IJ2[..., 0]"),
        ("mass_IJ < min_mass, LOW_MASS", "mass_IJ > min_mass, LOW_MASS"),
        ("reason_IJ.masked_fill_(missing_IJ, GIVEN)", "pass"),
        ("weight_IJ.sum(dim=1)", "weight_IJ.count_nonzero(dim=1)"),
        ("multiplier_I.where(multiplier_I.isfinite(), torch.nan)", "multiplier_I"),
        ("mass_IJ.where(present_IJ | (reason_IJ == LOW_MASS), torch.nan)", "mass_IJ.where(present_IJ, torch.nan)"),
    ],
)
def test_planted_faults_are_caught(old, new):
    mutant = mutated(gathered, old, new)
    with pytest.raises(AssertionError):
        call = ask(RUBRICS["mixed"], 16, dtype=torch.float64, min_mass=0.15)
        assert_scores_close(mutant.judge_score_gathered(**call), by_hand(**call), 1e-9)


# groups


@pytest.mark.parametrize("form", GROUP_FORMS)
@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([-7, 0, 3, 2**40]), st.sampled_from([0.1, 0.1, 0.3, 0.7, math.nan, math.inf])),
        max_size=12,
    )
)
def test_groups_equal_the_formulas(form, kind, pairs):
    group_I = torch.tensor([group for group, _ in pairs], dtype=torch.int64)
    reward_I = torch.tensor([reward for _, reward in pairs], dtype=torch.float64)
    found = GROUP_FORMS[form](reward_I, group_I, kind, 1e-6)
    expected = groups_by_hand(reward_I, group_I, kind, 1e-6)
    for field in fields(found):
        torch.testing.assert_close(
            getattr(found, field.name), getattr(expected, field.name), rtol=1e-9, atol=1e-12, equal_nan=True
        )


@pytest.mark.parametrize("form", GROUP_FORMS)
@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_ties_singletons_and_the_missing_get_exactly_zero(form, kind):
    """0.1 in fp32 thirteen times does not average to 0.1, and 1e-8 over (0 + epsilon) would be a signal."""
    reward_I = torch.tensor([0.1] * 12 + [math.nan, 0.1, 0.7] + [math.nan] * 3 + [0.2, math.nan])
    group_I = torch.tensor([0] * 14 + [1] + [2] * 3 + [3] * 2)
    found = GROUP_FORMS[form](reward_I, group_I, kind, 1e-6)
    assert torch.equal(found.advantage_I, torch.zeros(20)) and torch.equal(found.std_I, torch.zeros(20))
    assert found.size_I.tolist() == [13] * 14 + [1] + [0] * 3 + [1] * 2
    assert (found.mean_I[:14] == reward_I[0]).all() and found.mean_I[15:18].isnan().all()


@pytest.mark.parametrize("form", GROUP_FORMS)
def test_a_missing_reward_changes_nobody_elses_advantage(form):
    reward_I, group_I = torch.rand(9), torch.tensor([0, 1] * 4 + [1])
    reward_I[4] = math.nan
    found = GROUP_FORMS[form](reward_I, group_I, "grpo", 1e-6)
    kept = torch.arange(9) != 4
    without = GROUP_FORMS[form](reward_I[kept], group_I[kept], "grpo", 1e-6)
    torch.testing.assert_close(found.advantage_I[kept], without.advantage_I)
    assert found.advantage_I[4] == 0 and found.size_I[0] == 3


# position-swapped pairs


@pytest.mark.parametrize("bias", [0.0, 0.3, -2.0, 15.0, 60.0])
def test_an_order_bias_cancels_in_the_verdict_of_both_orders(bias):
    """Through the kernel: the judge of (x, y) and of (y, x) prefers the first place by `bias`, in log-odds."""
    labels = JudgeLabels((DimensionLabels("winner", (((0,),), ((1,),)), (1.0, 0.0)),))
    head_VD = torch.eye(2)
    quality = torch.tensor([1.2, -0.4, 0.0])
    orders = [torch.stack((sign * quality + bias, torch.zeros(3)), dim=1)[:, None] for sign in (1, -1)]
    first, second = (judge_score(hidden_ISD, head_VD, labels, min_mass=None) for hidden_ISD in orders)
    assert bias == 0 or (first.score_IJ - second.score_IJ.neg().add(1)).abs().max() > 1e-3
    verdict = swapped_verdict(
        *(scores.label_logprob_IL.T[0] - scores.label_logprob_IL.T[1] for scores in (first, second))
    )
    torch.testing.assert_close(verdict.log_odds, quality, rtol=0, atol=4e-6)
    torch.testing.assert_close(verdict.order_bias, torch.full((3,), bias), rtol=0, atol=4e-6)
    torch.testing.assert_close(verdict.probability, quality.sigmoid(), rtol=0, atol=1e-6)


def test_swapping_the_orders_negates_the_verdict_and_keeps_the_bias():
    x, y = torch.randn(5), torch.randn(5)
    there, back = swapped_verdict(x, y), swapped_verdict(y, x)
    assert torch.equal(there.log_odds, -back.log_odds) and torch.equal(there.order_bias, back.order_bias)


def test_a_pair_with_one_order_missing_is_missing():
    assert swapped_verdict(torch.tensor([1.0]), torch.tensor([math.nan])).log_odds.isnan().all()
    with pytest.raises(ValueError, match="one answer per order and pair"):
        swapped_verdict(torch.zeros(2), torch.zeros(3))


# the public entry


def public(call, **changes):
    names = ("hidden_ISD", "head_VD", "labels", "min_mass", "missing_IJ", "multiplier_I", "vocab_size")
    return judge_score(**{name: call[name] for name in names} | changes)


@pytest.mark.parametrize("override", ["", "judge_score=reference,group_advantages=reference"])
def test_the_entry_adds_groups_and_runs_what_is_asked_for(override, request):
    request.addfinalizer(lambda: registry.use(""))
    registry.use(override)
    call = ask(RUBRICS["mixed"], 6, min_mass=0.15)
    group_I = torch.tensor([4, 4, 4, 9, 9, 9], dtype=torch.int32)
    scores = public(call, group_I=group_I, advantage="dr_grpo")
    assert_scores_close(scores, by_hand(**call), 1e-5)
    again = group_advantages(scores.reward_I, group_I, kind="dr_grpo")
    assert torch.equal(scores.group.advantage_I, again.advantage_I)
    assert scores.reward_I.isfinite().any() and public(call).group is None
    assert scores.missing_IJ.dtype == torch.bool and torch.equal(scores.missing_IJ, scores.score_IJ.isnan())


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_no_logits_of_the_whole_vocabulary_exist():
    call = ask(RUBRICS["mixed"], 100, min_mass=0.1, hidden_size=8, vocab=8192)
    with Largest() as largest:
        public(call, group_I=torch.zeros(100, dtype=torch.int64))
    queries = 100 * len(call["labels"].contexts)
    assert largest.elements <= queries * 1024 < queries * 8192 / 4  # a tile of fused_linear_logprob's


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_operands_are_multiplied_exactly_and_summed_in_fp32(dtype):
    call = ask(RUBRICS["mixed"], 5, dtype=dtype, min_mass=0.15)
    scores = public(call)
    wide = call | {name: call[name].double() for name in ("hidden_ISD", "head_VD")}
    assert scores.score_IJ.dtype == torch.float32
    assert_scores_close(scores, by_hand(**wide), 1e-5)


def test_no_items_give_no_scores():
    call = ask(RUBRICS["mixed"], 0)
    scores = public(call, group_I=torch.zeros(0, dtype=torch.int64))
    assert scores.reward_I.shape == (0,) and scores.group.advantage_I.shape == (0,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_ISD": torch.zeros(3, 4)},
            r"hidden states \[3, 4\] torch.float32 must be \[items, contexts, hidden\]",
        ),
        ({"head_VD": torch.zeros(60, 24).double()}, "fit the head"),
        ({"hidden_ISD": torch.zeros(3, 1, 24)}, "1 query rows an item, but the labels ask for 8"),
        ({"vocab_size": 30}, "label token 33 lies outside the vocabulary of 30"),
        ({"min_mass": 1.5}, "min_mass is a probability, got 1.5"),
        ({"missing_IJ": torch.zeros(3, 4)}, "missing_IJ must be bool"),
        ({"missing_IJ": torch.zeros(3, 2, dtype=torch.bool)}, r"missing_IJ must be \[3, 4\] on cpu"),
        ({"multiplier_I": torch.ones(2)}, r"multiplier_I must be \[3\]"),
        ({"group_I": torch.zeros(3)}, "group_I must be integers"),
        ({"group_I": torch.zeros(3, dtype=torch.int64), "advantage": "ppo"}, "kind must be grpo, dr_grpo or rloo"),
        ({"group_I": torch.zeros(3, dtype=torch.int64), "epsilon": 0.0}, "epsilon must be above 0"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        public(ask(RUBRICS["mixed"], 3, missing=False), **changes)


# labels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ()}, "needs one value per label, got 0 and 2"),
        ({"values": (1.0,)}, "needs one value per label, got 2 and 1"),
        ({"values": (1.0, math.nan)}, "must be finite"),
        ({"values": (1.0, 1.0)}, "worst and best are both 1.0"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"weight": -1.0}, "weight must be at least 0"),
        ({"bias": (0.0,)}, "needs one bias per label, got 1 for 2"),
        ({"labels": (((1,),), ())}, "every label needs a variant"),
        ({"labels": (((1,),), ((),))}, "every variant token ids"),
        ({"labels": (((1,),), ((-2,),))}, "token ids of at least 0"),
        ({"labels": (((1,),), ((1, 0),))}, r"the variant \[1, 0\] begins with the variant \[1\]"),
        ({"labels": (((2,), (1, 5)), ((3,), (1, 5)))}, r"the variant \[1, 5\] begins with the variant \[1, 5\]"),
    ],
)
def test_bad_labels_name_their_dimension(changes, message):
    with pytest.raises(ValueError, match=f"judge dimension 'tone'.*{message}"):
        DimensionLabels(**{"name": "tone", "labels": (((1,),), ((2,),)), "values": (0.0, 1.0)} | changes)


def test_dimensions_need_different_names():
    dimension = DimensionLabels("tone", (((1,),), ((2,),)), (0.0, 1.0))
    for dimensions in ((), (dimension, dimension)):
        with pytest.raises(ValueError, match="different names"):
            JudgeLabels(dimensions)
