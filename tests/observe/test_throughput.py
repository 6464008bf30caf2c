"""Model FLOPs against hand arithmetic and the published figures for Qwen3-8B."""

import time

import pytest
import torch

from configs import QWEN3_8B
from osim_core.config import ModelConfig
from osim_core.observe.throughput import Clock, measure_peak_tflops, model_flops, weight_counts

SMALL = ModelConfig(
    family="llama",
    num_layers=3,
    hidden_size=10,
    ffn_hidden_size=7,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    vocab_size=11,
    max_position_embeddings=64,
    rope_theta=1e4,
    tied_embeddings=True,
)


@pytest.mark.parametrize(("length", "gigaflops"), [(2048, 47.2), (8192, 52.7), (16_384, 59.9), (24_576, 67.2)])
def test_qwen3_8b_per_token_in_full_rows(length, gigaflops):
    assert model_flops(QWEN3_8B, length, length**2, length) / length / 1e9 == pytest.approx(gigaflops, abs=0.05)


def test_weights_of_a_small_model_by_hand():
    counts = weight_counts(SMALL)
    query_and_output, key_and_value = 2 * 10 * 24, 2 * 10 * 12
    assert counts.layer_matrices == query_and_output + key_and_value + 3 * 10 * 7
    assert counts.total == 11 * 10 + 3 * (counts.layer_matrices + 20) + 10  # tied: the head adds nothing
    assert weight_counts(QWEN3_8B).total == 8_190_735_360


def test_flops_equal_torchs_own_count_of_a_layer():
    """A 1-document forward and backward counted by torch's FlopCounterMode, attention as two full matmuls."""
    from torch.utils.flop_counter import FlopCounterMode

    tokens = 9
    x = torch.randn(tokens, 10, requires_grad=True)
    shapes = [(10, 24), (10, 12), (10, 12), (24, 10), (10, 7), (10, 7), (7, 10)]
    q, k, v, o, gate, up, down = (torch.randn(shape, requires_grad=True) for shape in shapes)
    head = torch.randn(10, 11, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        heads_HTD = (x @ q).view(tokens, 4, 6).transpose(0, 1)
        keys_HTD, values_HTD = ((x @ w).view(tokens, 2, 6).transpose(0, 1).repeat_interleave(2, 0) for w in (k, v))
        scores_HTT = torch.bmm(heads_HTD, keys_HTD.transpose(1, 2)).softmax(-1)
        attended = torch.bmm(scores_HTT, values_HTD).transpose(0, 1).reshape(tokens, 24)
        hidden = attended @ o
        ((((hidden @ gate) * (hidden @ up)) @ down) @ head).sum().backward()
    one_layer = ModelConfig(**{**vars(SMALL), "num_layers": 1})
    # ours halves attention (causal); torch counts the whole square, so give it twice the square
    assert model_flops(one_layer, tokens, 2 * tokens**2, tokens) == counter.get_total_flops()


def test_packing_changes_attention_and_only_attention():
    whole = model_flops(SMALL, 100, 100**2, 60)
    packed = model_flops(SMALL, 100, 4 * 25**2, 60)
    assert whole - packed == 6 * 3 * 4 * 6 * (100**2 - 4 * 25**2)
    assert whole - model_flops(SMALL, 100, 100**2, 0) == 6 * 11 * 10 * 60  # the head runs where there is a loss


def test_clock_counts_only_between_start_and_stop():
    clock = Clock(SMALL, peak_tflops=1e-6, world_size=4)
    clock.start()
    time.sleep(0.05)
    first = clock.stop(tokens=1000, squared_lengths=5000, loss_tokens=800)
    time.sleep(0.2)  # evaluation
    clock.start()
    time.sleep(0.05)
    second = clock.stop(tokens=1000, squared_lengths=5000, loss_tokens=800)
    for reading in (first, second):
        assert 0.05 <= reading["perf/seconds"] < 0.2
        assert reading["perf/tokens_per_second"] == 1000 / reading["perf/seconds"]
        flops = model_flops(SMALL, 1000, 5000, 800)
        assert reading["perf/tflops"] == pytest.approx(flops / reading["perf/seconds"] / 1e12)
        assert reading["perf/mfu"] == pytest.approx(flops / (reading["perf/seconds"] * 4 * 1e6))


def test_peak_is_the_fastest_of_the_matmuls(monkeypatch):
    readings = iter([0.0, 0.0, 0.1, 0.15, 0.2, 0.2, 0.21, 0.6])  # deadline; (check, start, stop) ...; check
    monkeypatch.setattr("time.perf_counter", lambda: next(readings))
    peak = measure_peak_tflops(torch.device("cpu"), torch.float32, seconds=0.5)
    assert peak == pytest.approx(2 * 512**3 / 0.01 / 1e12)  # matmuls of 50 ms and 10 ms
