"""Policy loss: GRPO's clipped surrogate over 262,144 tokens, from log-probs.

Shape suffixes: T tokens.
"""

from unittest import mock

import torch

from benchmarks.kernels.measure import Problem
from benchmarks.kernels.offline_report import Work
from osim_kernels.policy_loss import GRPO
from osim_kernels.policy_loss import triton as host
from osim_kernels.policy_loss.reference import policy_loss_reference

TOKENS = 262_144
FLOPS_PER_TOKEN = 40  # exponentials counted as one: far from a bound either way


def work() -> dict[str, Work]:
    """Four fp32 inputs in, loss and slope out; backward reads the slope and a gradient and writes one."""
    shape = f"T {TOKENS}"
    return {
        "forward": Work(
            shape, FLOPS_PER_TOKEN * TOKENS, 24 * TOKENS, FLOPS_PER_TOKEN * host.BLOCK, 24 * host.BLOCK, "fp32"
        ),
        "backward": Work(shape, TOKENS, 12 * TOKENS, host.BLOCK, 12 * host.BLOCK, "fp32"),
    }


def offline_peers() -> dict:
    """Liger's GRPO loss, which starts from a whole [T, V] tensor of logits and so does more than ours."""
    return {"liger GRPO (from logits)": _liger}


def _liger() -> None:
    from liger_kernel.ops.grpo_loss import GrpoLossFunction

    logits = torch.zeros(2, 17, 32_768, dtype=torch.bfloat16, requires_grad=True)
    old, ids, mask = torch.zeros(2, 16), torch.zeros(2, 16, dtype=torch.int64), torch.ones(2, 16, dtype=torch.int32)
    GrpoLossFunction.apply(logits, old, None, ids, torch.ones(2), mask, 1.0, 0.0, 0.2, 0.2, True)[0].backward()


def problems(device: torch.device) -> list[Problem]:
    """The size above."""
    return [problem(TOKENS, device)]


def problem(tokens: int, device) -> Problem:
    """Log-probs near each other, so that some tokens clip; a tiny one runs in the interpreter."""
    logprob_T = -torch.rand(tokens, device=device) * 4
    inputs = {"logprob": logprob_T, "old": logprob_T + torch.randn(tokens, device=device) * 0.1}
    advantage_T, weights_T = torch.randn(tokens, device=device), torch.ones(tokens, device=device)

    def osim(logprob, old):
        return host.policy_loss_triton(logprob, old, None, advantage_T, weights_T, None, None, GRPO)[0]

    def truth(logprob, old):
        return policy_loss_reference(logprob, old, None, advantage_T, weights_T, None, None, GRPO)[0]

    contenders = {"osim": osim}
    if device.type == "cuda":
        contenders["torch.compile"] = torch.compile(truth)
    return Problem(
        op="policy_loss",
        case={"tokens": tokens, "dtype": "float32"},
        inputs=inputs,
        learned=("logprob",),
        truth=truth,
        contenders=contenders,
        tolerance=1e-5,
        flops=(FLOPS_PER_TOKEN * tokens, FLOPS_PER_TOKEN * tokens),
        moved_bytes=(24 * tokens, 36 * tokens),
        candidates={
            f"{block} w{warps}": lambda block=block, warps=warps: mock.patch.multiple(
                host, BLOCK=block, NUM_WARPS=warps
            )
            for block, warps in host.CANDIDATES
        },
    )
