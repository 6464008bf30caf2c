"""Fused linear log-prob in Triton over a vocabulary split between gloo ranks equals one rank holding it whole.

Shape suffixes: T tokens, D hidden, V vocabulary.
"""

import pytest
import torch
import torch.distributed as dist
import triton

from osim_kernels.fused_linear_logprob import triton as ours
from osim_kernels.proof import interpreter

TOKENS, HIDDEN = 29, 16
SMALL = ours.Config(16, 32, 16, 4, 2)
CASES = {
    "plain": {"vocab": 160, "real": 160},
    "entropy, padded": {"vocab": 160, "real": 131, "with_entropy": True},
    "a rank of padding alone": {"vocab": 160, "real": 70, "with_entropy": True, "temperature": 0.7},
    "masked, softcap": {"vocab": 160, "real": 160, "masked": True, "with_entropy": True, "logit_softcap": 4.0},
    "large logits": {"vocab": 160, "real": 160, "scale": 1e3},
}


def compute(case, rank, size, group):
    """(logprob, entropy or None, partial hidden gradient, gradient of this rank's head rows)."""
    options = dict(case)
    vocab, real, scale, masked = (
        options.pop(name, default) for name, default in (("vocab", 0), ("real", 0), ("scale", 1.0), ("masked", False))
    )
    generator = torch.Generator().manual_seed(7)
    hidden_TD = (torch.randn(TOKENS, HIDDEN, generator=generator) * scale).requires_grad_()
    weight_VD = torch.randn(vocab, HIDDEN, generator=generator)
    targets_T = torch.randint(0, real, (TOKENS,), generator=generator)
    weights_T = (torch.arange(TOKENS) % 3 > 0).float() if masked else None
    rows = vocab // size
    shard_VD = weight_VD[rank * rows : (rank + 1) * rows].clone().requires_grad_()
    logprob_T, entropy_T = ours.fused_linear_logprob_triton(
        hidden_TD,
        shard_VD,
        targets_T,
        weights_T=weights_T,
        tensor_parallel_group=group,
        vocab_start=rank * rows,
        vocab_size=real,
        **options,
    )
    ramp_T = torch.linspace(-1, 2, TOKENS)
    loss = (logprob_T * ramp_T).sum()
    if entropy_T is not None:
        loss = loss + (entropy_T * ramp_T.flip(0)).sum()
    grads = torch.autograd.grad(loss, (hidden_TD, shard_VD))
    return logprob_T.detach(), None if entropy_T is None else entropy_T.detach(), *grads


def on_every_rank():
    if triton.knobs.runtime.interpret:
        interpreter.install()
    ours.FORWARD[4] = ours.BACKWARD[4, False] = ours.BACKWARD[4, True] = SMALL
    rank, size = dist.get_rank(), dist.get_world_size()
    return {name: compute(case, rank, size, dist.group.WORLD) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def alone():
    return {name: compute(case, 0, 1, None) for name, case in CASES.items()}


@pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="gloo ranks hold CPU tensors")
@pytest.mark.parametrize("size", [2, 4])
def test_split_vocabulary_equals_one_rank(workers, alone, size):
    ranks = workers(size).run(on_every_rank)
    for name in CASES:
        parts = [rank[name] for rank in ranks]
        logprob_T, entropy_T, grad_TD, grad_VD = alone[name]
        # a logit has the same bits on every split; only sums of exponentials run in another order
        for part in parts:
            torch.testing.assert_close(part[0], logprob_T, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(part[1], entropy_T, rtol=1e-5, atol=1e-5)
            assert torch.equal(part[0], parts[0][0]), "ranks must agree on every bit"
        torch.testing.assert_close(sum(part[2] for part in parts), grad_TD, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.cat([part[3] for part in parts]), grad_VD, rtol=1e-4, atol=1e-4)
