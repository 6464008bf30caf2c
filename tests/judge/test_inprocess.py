"""The in-process judge equals a whole softmax over every prompt alone, in any layout, packing and company."""

import dataclasses
import math
import shutil

import pytest
import torch

from osim_core.config import LayoutConfig
from osim_core.corpus import tokenizer as tokenizers
from osim_core.judge.calibrate import Calibration
from osim_core.judge.labels import judge_labels
from osim_core.judge.prompt import JudgePrompt, calls, question, texts
from osim_core.judge.reading import LOW_MASS
from osim_core.judge.rubric import JudgeItem, load_rubric
from osim_core.missing import Missing
from osim_core.model.packaged import unpack_smollm2
from osim_core.rollout.ledger import TOO_LONG
from tests.judge.cases import CHAT, REPLIES, judged, rubrics, some_items, tiny_judge, truth

ITEMS = some_items()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def verdicts(workers, folder):
    return workers(1).run(judged, folder=folder, items=ITEMS)[0]


def expected(items, probabilities):
    """(values, score, masses) of each item, written out from the label probabilities."""
    named = {rubric.id: rubric for rubric in rubrics()}
    orders = iter(probabilities)
    for item in items:
        rubric = named[item.rubric]
        values, masses = {}, {}
        if rubric.pairwise:
            one, two = next(orders), next(orders)
            for d in rubric.dimensions:
                odds = [math.log(p[d.name][0] / p[d.name][1]) for p in (one, two)]
                values[d.name] = 1 / (1 + math.exp(-(odds[0] - odds[1]) / 2))
        else:
            own = next(orders)
            for d in rubric.dimensions:
                *probability, masses[d.name] = own[d.name]
                values[d.name] = d.normalise(sum(p * v for p, v in zip(probability, d.values, strict=True)))
        weights = {d.name: d.weight for d in rubric.dimensions}
        yield values, sum(weights[n] * v for n, v in values.items()) / sum(weights.values()), masses


def assert_true(found, folder, items, tolerance, dtype=torch.float64):
    probabilities = truth(folder, items, dtype)
    for item, verdict, (values, score, masses) in zip(items, found, expected(items, probabilities), strict=True):
        assert verdict.values == pytest.approx(values, abs=tolerance), item.id
        assert verdict.score == pytest.approx(score, abs=tolerance), item.id
        assert {n: verdict.details[n]["mass"] for n in masses} == pytest.approx(masses, rel=1e-3), item.id


def assert_same(found, other, tolerance=2e-6):
    for one, two in zip(found, other, strict=True):
        assert one.values == pytest.approx(two.values, abs=tolerance)


def test_equals_the_whole_softmax_of_every_prompt_alone(verdicts, folder):
    found, (tokens, unshared) = verdicts
    some = [0, 1, 4, 7, 8]
    assert_true([found[i] for i in some], folder, [ITEMS[i] for i in some], 1e-5)
    assert unshared > 2 * tokens
    scores = [verdict.score for verdict in found]
    assert len(set(scores)) > len(scores) - 2  # the tiny judge is not the same for everything


@pytest.mark.parametrize("max_tokens", [1400, 2200])
def test_rows_and_company_change_nothing(workers, folder, verdicts, max_tokens):
    order = [*range(1, len(ITEMS), 2), *range(0, len(ITEMS), 2)]
    (found, _) = workers(1).run(judged, folder=folder, items=[ITEMS[i] for i in order], max_tokens=max_tokens)[0]
    assert_same(found, [verdicts[0][i] for i in order])


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_tensor_parallel_ranks_agree(workers, folder, verdicts, sequence_parallel):
    layout = LayoutConfig(tensor=2, sequence_parallel=sequence_parallel)
    one, two = workers(2).run(judged, folder=folder, items=ITEMS, layout=layout)
    assert one[0] == two[0]
    assert_same(one[0], verdicts[0])


def test_a_prompt_that_is_too_long_is_missing_and_no_other(workers, folder, verdicts):
    long = JudgeItem(id="long", rubric="next_turn", context=CHAT, reply="word " * 400)
    pair = dataclasses.replace(long, id="pair", rubric="turing_pair", other="hi")
    (found, _) = workers(1).run(judged, folder=folder, items=[long, *ITEMS, pair])[0]
    for verdict in (found[0], found[-1]):
        assert verdict.score.reason == TOO_LONG and "a prompt of" in verdict.score.detail
    assert_same(found[1:-1], verdicts[0])


def test_low_label_mass_is_missing(workers, folder, verdicts):
    masses = sorted(d["mass"] for v in verdicts[0] for d in v.details.values() if "mass" in d)
    threshold = masses[len(masses) // 2] * 1.0001
    (found, _) = workers(1).run(judged, folder=folder, items=ITEMS, min_mass=threshold)[0]
    gone = 0
    for item, verdict, before in zip(ITEMS, found, verdicts[0], strict=True):
        if item.other is not None:
            continue
        for name, value in verdict.values.items():
            low = before.details[name]["mass"] < threshold
            gone += low
            assert isinstance(value, Missing) == low and (not low or value.reason == LOW_MASS)
        present = [value for value in verdict.values.values() if not isinstance(value, Missing)]
        assert isinstance(verdict.score, Missing) == (not present)
    assert gone > 5


def test_calibration_is_applied(workers, folder, verdicts):
    flat = {"next_turn": {"fits": Calibration(1e6), "register": Calibration(1e6, (0.0, 0.0, 50.0))}}
    (found, _) = workers(1).run(judged, folder=folder, items=ITEMS, calibrations=flat)[0]
    for item, verdict, before in zip(ITEMS, found, verdicts[0], strict=True):
        if item.rubric == "next_turn":
            assert verdict.values["fits"] == pytest.approx(0.5, abs=1e-4)
            assert verdict.values["register"] == pytest.approx(1.0, abs=1e-4)
            assert verdict.values["human_likeness"] == pytest.approx(before.values["human_likeness"], abs=2e-6)


def test_a_swapped_pair_is_the_complement(workers, folder):
    pair = next(item for item in ITEMS if item.other is not None)
    back = dataclasses.replace(pair, reply=pair.other, other=pair.reply)
    (found, _) = workers(1).run(judged, folder=folder, items=[pair, back, dataclasses.replace(pair, other=pair.reply)])[
        0
    ]
    assert found[0].score + found[1].score == pytest.approx(1.0, abs=1e-6)
    assert found[0].score != pytest.approx(0.5, abs=1e-4)
    assert found[0].details["real"]["order_bias"] == pytest.approx(found[1].details["real"]["order_bias"], abs=1e-5)
    assert found[2].score == pytest.approx(0.5, abs=1e-6)  # a reply against itself, whatever the judge's order bias
    assert abs(found[2].details["real"]["order_bias"]) > 1e-3


def test_layouts_that_cut_the_tree_are_refused(workers, folder):
    layout = LayoutConfig(pipeline=2)
    with pytest.raises(RuntimeError, match="without pipeline and context parallelism, got pipeline 2 and context 1"):
        workers(2).run(judged, folder=folder, items=ITEMS[:1], layout=layout)


def test_a_prompt_is_the_template_s_own_text_and_items_are_never_markup(folder):
    prompt = JudgePrompt(tokenizers.load(folder))
    rubric = load_rubric("next_turn")
    item = JudgeItem(id="x", rubric="next_turn", context=CHAT, reply=REPLIES[3])
    (path,) = prompt.paths(rubric, calls(rubric, item))
    ids = [token for part in path[0] for token in part]
    task, context, reply = texts(rubric, calls(rubric, item)[0])
    user = context + reply + question(rubric.dimensions[0])
    text = f"<|im_start|>system\n{task}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.tokenizer.decode(ids) == text
    assert ids.count(1) == 3 and ids.count(2) == 2  # <|im_start|>, <|im_end|>: those of the reply are text
    assert path[0][:3] == path[1][:3] and path[0][3] != path[1][3]


def test_labels_that_begin_another_one_are_closed(folder):
    prompt = JudgePrompt(tokenizers.load(folder))
    one, *_, nine, ten = judge_labels(load_rubric("next_turn"), prompt, {}).dimensions[0].labels
    (digit,) = prompt.encode(["1"])
    assert one == tuple(digit + end for end in prompt.ends) and prompt.ends[0] == (2,)
    assert nine == tuple(prompt.encode(["9"])) and ten == tuple(prompt.encode(["10"]))
    yes, no = judge_labels(load_rubric("intent"), prompt, {}).dimensions[0].labels
    assert (yes, no) == (tuple(prompt.encode(["yes", "Yes"])), tuple(prompt.encode(["no", "No"])))


@pytest.mark.slow
def test_smollm2_equals_transformers(workers, tmp_path):
    folder = unpack_smollm2(tmp_path)
    items = [ITEMS[0], next(item for item in ITEMS if item.other is not None)]
    (found, _) = workers(1).run(judged, folder=folder, items=items)[0]
    assert_true(found, folder, items, 1e-5, torch.float32)
    shutil.rmtree(tmp_path)
