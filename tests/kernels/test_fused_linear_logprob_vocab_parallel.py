"""Fused linear log-prob over a vocabulary split between 2 and 4 gloo ranks equals one rank holding it whole.

Four processes start once for the file; ranks 0 and 1 also form the group of two. Each writes what it computed, and
the tests compare. Shape suffixes: T tokens, D hidden, V vocabulary.
"""

import os
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from osim_kernels.fused_linear_logprob import chunked, fused_linear_logprob

WORLD, TOKENS, HIDDEN = 4, 29, 6
CASES = {
    "plain": {"vocab": 64, "real": 64},
    "entropy": {"vocab": 64, "real": 64, "with_entropy": True},
    "padded": {"vocab": 60, "real": 50, "with_entropy": True},
    "a rank of padding alone": {"vocab": 64, "real": 30, "with_entropy": True, "temperature": 0.7},
    "masked": {"vocab": 64, "real": 61, "masked": True, "with_entropy": True, "logit_softcap": 4.0},
    "all masked": {"vocab": 64, "real": 64, "masked": "all", "with_entropy": True},
    "extreme": {"vocab": 64, "real": 64, "scale": 1e4},
}


def inputs(case):
    generator = torch.Generator().manual_seed(7)
    settings = dict(case)
    vocab, real = settings.pop("vocab"), settings.pop("real")
    hidden_TD = torch.randn(TOKENS, HIDDEN, dtype=torch.float64, generator=generator) * settings.pop("scale", 1.0)
    weight_VD = torch.randn(vocab, HIDDEN, dtype=torch.float64, generator=generator)
    targets_T = torch.randint(0, real, (TOKENS,), generator=generator)
    masked = settings.pop("masked", False)
    weights_T = None
    if masked:
        weights_T = torch.zeros(TOKENS) if masked == "all" else (torch.arange(TOKENS) % 3 > 0).float()
    return hidden_TD, weight_VD, targets_T, {"weights_T": weights_T, "vocab_size": real, **settings}


def compute(case, rank=0, size=1, group=None):
    """(logprob, entropy or None, partial hidden gradient, gradient of this rank's head rows)."""
    hidden_TD, weight_VD, targets_T, options = inputs(case)
    rows = weight_VD.shape[0] // size
    hidden_TD.requires_grad_()
    shard_VD = weight_VD[rank * rows : (rank + 1) * rows].requires_grad_()
    logprob_T, entropy_T = fused_linear_logprob(
        hidden_TD, shard_VD, targets_T, tensor_parallel_group=group, vocab_start=rank * rows, **options
    )
    ramp_T = torch.linspace(-1, 2, TOKENS, dtype=torch.float64)
    loss = (logprob_T * ramp_T).sum()
    if entropy_T is not None:
        loss = loss + (entropy_T * ramp_T.flip(0)).sum()
    grads = torch.autograd.grad(loss, (hidden_TD, shard_VD))
    return logprob_T.detach(), None if entropy_T is None else entropy_T.detach(), *grads


class CountCollectives:
    """Counts the all-gathers of one call, by standing in for torch.distributed's."""

    def __init__(self) -> None:
        self.count, self.real = 0, dist.all_gather_into_tensor

    def __call__(self, *args, **kwargs):
        self.count += 1
        return self.real(*args, **kwargs)


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    groups = {2: dist.new_group([0, 1]), WORLD: dist.group.WORLD}
    chunked.CPU_TILE = (7, 13)
    dist.all_gather_into_tensor = counter = CountCollectives()
    results = {}
    for size, group in groups.items():
        if rank < size:
            for name, case in CASES.items():
                results[size, name] = compute(case, rank, size, group)
    torch.save((results, counter.count), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks():
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, args=(folder,), nprocs=WORLD)
        saved = [torch.load(f"{folder}/{rank}.pt") for rank in range(WORLD)]
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before
    return saved


@pytest.mark.parametrize("size", [2, WORLD])
@pytest.mark.parametrize("name", CASES)
def test_split_vocabulary_equals_one_rank(ranks, size, name):
    logprob_T, entropy_T, grad_hidden_TD, grad_weight_VD = compute(CASES[name])
    parts = [ranks[rank][0][size, name] for rank in range(size)]
    for part in parts:
        torch.testing.assert_close(part[0], logprob_T)
        torch.testing.assert_close(part[1], entropy_T)
        assert torch.equal(part[0], parts[0][0]), "ranks must agree on every bit"
    torch.testing.assert_close(sum(part[2] for part in parts), grad_hidden_TD)
    torch.testing.assert_close(torch.cat([part[3] for part in parts]), grad_weight_VD)


def test_a_call_costs_one_collective(ranks):
    assert [count for _, count in ranks] == [2 * len(CASES), 2 * len(CASES), len(CASES), len(CASES)]
