"""A checksum depends on every bit, name, shape and dtype, and on nothing else."""

import pytest
import torch

from osim_core.rollout import checksum as module
from osim_core.rollout.checksum import checksum


def weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(7, 5, generator=generator).to(dtype),
        "b": torch.randn(33, generator=generator).to(dtype),
        "empty": torch.zeros(0, 3, dtype=dtype),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8])
def test_order_layout_and_block_size_do_not_matter(monkeypatch, dtype):
    truth = checksum(weights(dtype).items())
    assert checksum(reversed(weights(dtype).items())) == truth
    turned = {
        name: tensor.t().contiguous().t() if tensor.dim() > 1 else tensor for name, tensor in weights(dtype).items()
    }
    assert checksum(turned.items()) == truth
    monkeypatch.setattr(module, "BLOCK", 4)
    assert checksum(weights(dtype).items()) == truth


def test_every_single_bit_matters():
    truth, tensors = checksum(weights().items()), weights()
    bits = tensors["b"].view(torch.int32)
    for place in (0, 16, 32):
        for bit in range(32):
            mask = torch.tensor(1 << bit if bit < 31 else -(1 << 31), dtype=torch.int32)
            bits[place] ^= mask
            assert checksum(tensors.items()) != truth, (place, bit)
            bits[place] ^= mask
    assert checksum(tensors.items()) == truth


def test_exchanged_elements_rows_and_tensors_matter():
    truth = checksum(weights().items())
    swapped = weights()
    swapped["b"][[3, 4]] = swapped["b"][[4, 3]]
    assert checksum(swapped.items()) != truth
    assert checksum((weights() | {"a": weights()["a"].flip(0)}).items()) != truth
    pair = {"x": torch.ones(4), "y": torch.zeros(4)}
    assert checksum(pair.items()) != checksum({"x": pair["y"], "y": pair["x"]}.items())


def test_names_shapes_and_dtypes_matter():
    truth = checksum(weights().items())
    a = weights()["a"]
    for other in (a.view(5, 7), a.view(torch.int32)):
        assert checksum((weights() | {"a": other}).items()) != truth
    renamed = weights()
    renamed["c"] = renamed.pop("b")
    assert checksum(renamed.items()) != truth
    missing = weights()
    del missing["empty"]
    assert checksum(missing.items()) != truth
