"""Fused linear log-prob: 8,192 tokens of width 4,096 onto a vocabulary of 151,936.

Shape suffixes: T tokens, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch

from benchmarks.kernels.measure import Problem
from benchmarks.kernels.offline_report import Work
from osim_kernels.fused_linear_logprob.triton import BACKWARD, CANDIDATES, FORWARD, Config, fused_linear_logprob_triton

TOKENS, HIDDEN, VOCABULARY = 8192, 4096, 151_936


@contextmanager
def use(config: Config, dtype: torch.dtype) -> Iterator[None]:
    """Both passes take `config` inside; it is tuned without a soft cap."""
    with (
        mock.patch.dict(FORWARD, {dtype.itemsize: config}),
        mock.patch.dict(BACKWARD, {(dtype.itemsize, False): config}),
    ):
        yield


def work() -> dict[str, Work]:
    """One product forward, three backward (logits again, gradients of both operands); operands and results once."""
    shape = f"T {TOKENS}, D {HIDDEN}, V {VOCABULARY}"
    product, operands = 2.0 * TOKENS * HIDDEN * VOCABULARY, 2.0 * HIDDEN * (TOKENS + VOCABULARY)
    tile = FORWARD[2]
    step = 2 * tile.tokens * tile.columns * tile.depth, 2 * tile.depth * (tile.tokens + tile.columns)
    return {
        "forward": Work(shape, product, operands, *step),
        "backward": Work(shape, 3 * product, 2 * operands, *step),
    }


def offline_peers() -> dict:
    """Liger's fused linear cross-entropy: cuBLAS for the products, Triton for the loss over a chunk of logits."""
    return {"liger FLCE": _liger}


def _liger() -> None:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    hidden, head = (torch.zeros(rows, 128, dtype=torch.bfloat16, requires_grad=True) for rows in (64, 32_768))
    LigerFusedLinearCrossEntropyFunction.apply(hidden, head, torch.zeros(64, dtype=torch.int64))[0].backward()


def problems(device: torch.device) -> list[Problem]:
    """The shape above, bf16."""
    return [problem(TOKENS, HIDDEN, VOCABULARY, device, torch.bfloat16)]


def problem(tokens, hidden_size, vocabulary, device, dtype) -> Problem:
    """Cross-entropy of random targets, per token; a tiny one runs in the interpreter."""
    targets_T = torch.randint(vocabulary, (tokens,), device=device)
    inputs = {
        "hidden": torch.randn(tokens, hidden_size, device=device, dtype=dtype),
        "head": (torch.randn(vocabulary, hidden_size, device=device) * hidden_size**-0.5).to(dtype),
    }

    def osim(hidden, head):
        return -fused_linear_logprob_triton(hidden, head, targets_T, vocab_size=vocabulary)[0]

    def truth(hidden, head):
        return torch.nn.functional.cross_entropy((hidden @ head.T).float(), targets_T, reduction="none")

    contenders = {"osim": osim}
    if device.type == "cuda":
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        def liger(
            hidden, head
        ):  # it scales the gradients by the upstream gradient of a sum, so per-token weights differ
            settings = (None, None, -100, 0.0, 0.0, "none")
            return LigerFusedLinearCrossEntropyFunction.apply(hidden, head, targets_T, *settings)[0]

        contenders |= {"liger FLCE": liger, "torch.compile": torch.compile(truth)}
    product = 2.0 * tokens * hidden_size * vocabulary
    moved = sum(x.nbytes for x in inputs.values())
    return Problem(
        op="fused_linear_logprob",
        case={"tokens": tokens, "hidden": hidden_size, "vocabulary": vocabulary}
        | {"dtype": str(dtype).removeprefix("torch.")},
        inputs=inputs,
        learned=("hidden", "head"),
        truth=truth,
        contenders=contenders,
        tolerance=2e-2 if dtype != torch.float32 else 1e-5,
        flops=(product, 4 * product),
        moved_bytes=(moved, 3 * moved),
        candidates={config.name: partial(use, config, dtype) for config in CANDIDATES[dtype.itemsize]},
    )
