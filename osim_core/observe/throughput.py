"""Tokens per second and model-FLOPs utilisation (MFU), with the packed formula.

Model FLOPs of a step are those that the mathematics of the model requires, forward plus backward:

    6 * body_weights * tokens                                   every layer's matrices: 2 forward, 4 backward
  + 6 * head_weights * loss_tokens                              the head runs only where a loss is taken
  + 12 * layers * heads * head_dim * sum(segment_length^2) / 2  QK^T and PV; causal, so half of each square

Embedding look-ups, norms, rotary and softmax are not counted, recomputation is not counted, and padding is
not counted: `tokens` and the segments are those of documents. In a packed row attention ends at document
borders, so the attention term takes the sum of squared document lengths; the row length squared would
inflate MFU. (Convention of the PaLM paper, appendix B, and Megatron-LM, made causal and packed.)
"""

import time
from dataclasses import dataclass

import torch

from osim_core.config import ModelConfig


@dataclass(frozen=True)
class WeightCounts:
    """Elements of the model's parameters by place. `head` is 0 in `total` for tied embeddings, but used in
    FLOPs.
    """

    embedding: int
    layer_matrices: int  # of one layer: q, k, v, output projection, gate, up, down
    layer_norms: int  # of one layer: two RMSNorms and, with qk-norm, two more of head_dim
    final_norm: int
    head: int
    num_layers: int
    tied: bool

    @property
    def body_matrices(self) -> int:
        return self.num_layers * self.layer_matrices

    @property
    def total(self) -> int:
        body = self.num_layers * (self.layer_matrices + self.layer_norms)
        return self.embedding + body + self.final_norm + (0 if self.tied else self.head)


def weight_counts(model: ModelConfig) -> WeightCounts:
    """Count parameters from the config alone (no bias anywhere, as in Qwen3 and Llama)."""
    attention = 2 * model.hidden_size * model.head_dim * (model.num_heads + model.num_kv_heads)
    mlp = 3 * model.hidden_size * model.ffn_hidden_size
    return WeightCounts(
        embedding=model.vocab_size * model.hidden_size,
        layer_matrices=attention + mlp,
        layer_norms=2 * model.hidden_size + (2 * model.head_dim if model.qk_norm else 0),
        final_norm=model.hidden_size,
        head=model.vocab_size * model.hidden_size,
        num_layers=model.num_layers,
        tied=model.tied_embeddings,
    )


def model_flops(model: ModelConfig, tokens: int, squared_lengths: int, loss_tokens: int) -> float:
    """FLOPs of forward and backward over documents with `tokens` tokens in all (see the module docstring).

    squared_lengths: sum over documents of length^2; loss_tokens: tokens with a non-zero weight in any stream.
    """
    counts = weight_counts(model)
    matrices = 6.0 * (counts.body_matrices * tokens + counts.head * loss_tokens)
    attention = 6.0 * model.num_layers * model.num_heads * model.head_dim * squared_lengths
    return matrices + attention


def measure_peak_tflops(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """TFLOP/s of the fastest of repeated square matmuls in this process on this device, within about `seconds`.

    It measures what one process with its own threads reaches now, and is the MFU denominator where no data sheet gives
    a number (laptops). n is 8,192 on CUDA; on a CPU 512, a few milliseconds, so that the fastest one falls between the
    interruptions of a busy machine. On CUDA prefer the data sheet (`train.device_peak_tflops`: 989 for bf16 on an
    H100 SXM).
    """
    size = 8192 if device.type == "cuda" else 512
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    result = left @ right  # warm-up, outside the clock
    _wait(device)
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline or best == float("inf"):
        start = time.perf_counter()
        torch.matmul(left, right, out=result)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e12


class Clock:
    """Times training steps: `start()`, the step, then `stop(...)`, which returns the step's `perf/*` metrics.

    Evaluation and checkpoints fall between `stop` and `start` and are not counted. The step must have ended
    on the device, which reading its loss or gradient norm ensures. peak_tflops is per device.
    """

    def __init__(self, model: ModelConfig, peak_tflops: float, world_size: int) -> None:
        assert peak_tflops > 0 and world_size > 0
        self._model = model
        self._peak_flops = peak_tflops * 1e12 * world_size
        self._started = 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self, *, tokens: int, squared_lengths: int, loss_tokens: int) -> dict[str, float]:
        """Counts are sums over all data-parallel ranks and micro-batches of the step, padding left out."""
        seconds = time.perf_counter() - self._started
        flops = model_flops(self._model, tokens, squared_lengths, loss_tokens)
        return {
            "perf/seconds": seconds,
            "perf/tokens_per_second": tokens / seconds,
            "perf/tflops": flops / seconds / 1e12,
            "perf/mfu": flops / (seconds * self._peak_flops),
        }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
