"""Adapters: the same training in every layout, the right gradients, and a checkpoint that any layout can go on from."""

import pytest
import torch

from osim_core.config import LayoutConfig
from tests.model import lora_cases as cases
from tests.support.models import TINY_QWEN3, random_rows

ROWS = random_rows(rows=2, length=64, vocab_size=TINY_QWEN3.vocab_size)
ONE = LayoutConfig(distributed_optimizer=False)


@pytest.fixture(scope="module")
def truth(workers):
    return workers(1).run(cases.train, layout=ONE, rows=ROWS)[0]


def test_only_adapters_learn_and_the_base_is_their_reference(truth):
    assert truth["loss"][2] < truth["loss"][0] - 0.05
    assert (
        truth["trainable"]
        == sum(
            cases.LORA.rank * (inputs + outputs)
            for inputs, outputs in [(64, 256), (128, 64), (64, 320), (160, 64)]  # qkv, proj, fc1, fc2
        )
        * TINY_QWEN3.num_layers
    )
    changed = {name for name in truth["merged"] if not torch.equal(truth["merged"][name], truth["frozen"][name])}
    assert changed == {name for name in truth["merged"] if "_proj." in name}
    for base, off, on in zip(truth["base"], truth["disabled"], truth["adapted"], strict=True):
        assert torch.equal(base, off) and (on - base).abs().max() > 0.05


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (2, LayoutConfig(tensor=2)),
        (2, LayoutConfig(tensor=2, sequence_parallel=True)),
        (2, LayoutConfig(context=2, distributed_optimizer=False)),
        (2, LayoutConfig(pipeline=2)),
        (2, LayoutConfig()),
        (1, LayoutConfig(recompute="full", distributed_optimizer=False)),
        (1, LayoutConfig(recompute="selective")),
    ],
    ids=["tp2", "tp2-sp", "cp2", "pp2", "dp2", "recompute-full", "recompute-selective"],
)
def test_every_layout_trains_the_same_adapters(workers, truth, ranks, layout):
    for result in workers(ranks).run(cases.train, layout=layout, rows=ROWS):
        assert result["loss"] == pytest.approx(truth["loss"], abs=1e-5)
        assert result["norm"] == pytest.approx(truth["norm"], rel=1e-4)
        for name, tensor in truth["merged"].items():
            torch.testing.assert_close(result["merged"][name], tensor, rtol=0, atol=5e-4, msg=name)


def test_gradients_of_adapters_follow_from_those_of_the_weight(workers):
    [found] = workers(1).run(cases.first_gradients, rows=ROWS)
    assert len(found) == 4 * TINY_QWEN3.num_layers
    for layer, gradient, expected in found:
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6, msg=layer)


def test_a_checkpoint_goes_on_in_the_same_layout_and_in_another(workers, tmp_path):
    layout = LayoutConfig(tensor=2, sequence_parallel=True)
    whole = workers(2).run(cases.save, layout=layout, rows=ROWS, folder=tmp_path)[0]
    same = workers(2).run(cases.resume, layout=layout, rows=ROWS, folder=tmp_path)[0]
    other = workers(1).run(cases.resume, layout=LayoutConfig(), rows=ROWS, folder=tmp_path)[0]
    assert same["loss"] == whole["loss"] and other["loss"] == pytest.approx(whole["loss"], abs=1e-5)
    for name, tensor in whole["merged"].items():
        assert torch.equal(same["merged"][name], tensor), name
        torch.testing.assert_close(other["merged"][name], tensor, rtol=0, atol=5e-4, msg=name)


def test_a_checkpoint_before_the_first_update_goes_on_like_any_other(workers, tmp_path):
    layout = LayoutConfig()
    [whole] = workers(1).run(cases.save, layout=layout, rows=ROWS, folder=tmp_path, updates=0)
    [resumed] = workers(1).run(cases.resume, layout=layout, rows=ROWS, folder=tmp_path)
    assert resumed["loss"] == whole["loss"]
    assert all(torch.equal(resumed["merged"][name], tensor) for name, tensor in whole["merged"].items())
