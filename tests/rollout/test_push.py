"""What an engine is given is the trainer's model, bit for bit, from any layout; a refusal reaches every rank."""

import pytest
import torch

from osim_core.config import LayoutConfig, LoraConfig
from tests.rollout.push_cases import streamed_weights, tiny

LAYOUTS = {
    "dp2": LayoutConfig(),
    "tp2": LayoutConfig(tensor=2, sequence_parallel=True),
    "pp2-virtual2": LayoutConfig(pipeline=2, virtual_pipeline=2),
    "cp2": LayoutConfig(context=2),
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_engine_is_given_every_tensor_once_bit_for_bit(workers, layout, tied):
    model = tiny(tied)
    results = workers(2).run(streamed_weights, model=model, layout=LAYOUTS[layout], seed=3)
    assert all(error is None for _, _, error in results)
    served = [weights for weights, _, _ in results if weights is not None]
    assert len(served) == (2 if layout in ("dp2", "cp2") else 1)  # engines: one for each copy of the model
    for weights in served:
        truth = results[0][1]
        assert weights.keys() == truth.keys() and ("lm_head.weight" in weights) != tied
        assert all(torch.equal(weights[name], tensor) for name, tensor in truth.items())


def test_a_copy_without_an_engine_takes_no_part(workers):
    (served, truth, _), (none, _, error) = workers(2).run(
        streamed_weights, model=tiny(False), layout=LayoutConfig(), seed=3, copies=1
    )
    assert served.keys() == truth.keys() and none is None and error is None


def test_adapters_are_pushed_merged_and_the_same_from_any_layout(workers):
    lora = LoraConfig(rank=4, alpha=8.0)
    pushed = {}
    for layout in ("dp2", "tp2"):
        (weights, base, _), _ = workers(2).run(
            streamed_weights, model=tiny(False), layout=LAYOUTS[layout], seed=3, lora=lora
        )
        assert weights.keys() == base.keys()
        changed = {name for name in base if not torch.equal(weights[name], base[name])}
        assert changed == {name for name in base if name.endswith("_proj.weight")}
        pushed[layout] = weights
    for name, tensor in pushed["dp2"].items():
        torch.testing.assert_close(pushed["tp2"][name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", ["tp2", "pp2-virtual2"])
def test_a_refusal_in_mid_stream_is_raised_on_every_rank(workers, layout):
    results = workers(2).run(streamed_weights, model=tiny(False), layout=LAYOUTS[layout], seed=3, take=5)
    errors = {error for _, _, error in results}
    assert len(errors) == 1 and next(iter(errors)).endswith("is refused")
