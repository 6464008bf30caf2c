"""Fused linear KL over a vocabulary split between 2 and 4 gloo ranks equals one rank holding it whole.

Shape suffixes: T tokens, D and E hidden sizes, V vocabulary.
"""

import pytest
import torch
import torch.distributed as dist

from osim_kernels.fused_linear_kl import fused_linear_kl, fused_linear_kl_top_k

TOKENS = 21
CASES = {
    **{kind: {"divergence": kind} for kind in ("forward", "reverse", "jsd")},
    "padded, capped": {"divergence": "reverse", "real": 50, "student_softcap": 2.0, "teacher_temperature": 0.7},
    "ranks of padding alone": {"divergence": "jsd", "beta": 0.2, "real": 15},
    "masked": {"divergence": "jsd", "masked": True},
    **{f"top-k {kind}": {"divergence": kind, "stored": 5, "real": 61} for kind in ("forward", "reverse", "jsd")},
    "top-k, ranks of padding alone": {"divergence": "forward", "stored": 3, "real": 15, "student_softcap": 2.0},
    "extreme": {"divergence": "forward", "scale": 1e4},
}


def compute(name, implementation="chunked", rank=0, size=1, group=None):
    """(value, partial hidden gradient, gradient of this rank's head rows)."""
    from osim_kernels import registry
    from osim_kernels.fused_linear_kl import chunked, top_k_triton, triton

    chunked.CPU_TILE = (7, 13)
    tile = triton.Config(16, 16, 16, 4, 2)
    triton.CONFIGS, triton.PROGRAMS = dict.fromkeys(triton.CONFIGS, tile), 2
    top_k_triton.FORWARD, top_k_triton.BACKWARD = (
        dict.fromkeys(table, tile) for table in (top_k_triton.FORWARD, top_k_triton.BACKWARD)
    )
    case = dict(CASES[name])
    real, masked, stored, scale = (
        case.pop("real", 64),
        case.pop("masked", False),
        case.pop("stored", 0),
        case.pop("scale", 1),
    )
    generator = torch.Generator().manual_seed(7)
    dtype = torch.float64 if implementation == "chunked" else torch.float32
    student_TD, student_VD, teacher_TE, teacher_VE = (
        torch.randn(length, width, dtype=torch.float64, generator=generator).to(dtype)
        for width in (8, 12)
        for length in (TOKENS, 64)
    )
    student_TD, teacher_TE = student_TD * scale, teacher_TE * scale
    rows = 64 // size
    mine = slice(rank * rows, (rank + 1) * rows)
    student_TD.requires_grad_()
    shard_VD = student_VD[mine].clone().requires_grad_()
    case["weights_T"] = (torch.arange(TOKENS) % 3 > 0).float() if masked else None
    vocabulary = {"tensor_parallel_group": group, "vocab_start": mine.start, "vocab_size": real}
    select = registry.Op.select
    if implementation == "triton":
        entry = top_k_triton.bucket_logprobs_triton if stored else triton.fused_linear_kl_triton
        registry.Op.select = lambda *args, **kwargs: entry
    try:
        if stored:
            best = (teacher_TE @ teacher_VE[:real].T).log_softmax(-1).topk(stored)
            kl_T = fused_linear_kl_top_k(student_TD, shard_VD, best.indices, best.values, **vocabulary, **case)
        else:
            kl_T = fused_linear_kl(student_TD, shard_VD, teacher_TE, teacher_VE[mine], **vocabulary, **case)
    finally:
        registry.Op.select = select
    ramp_T = torch.linspace(-1, 2, TOKENS, dtype=dtype)
    return kl_T.detach(), *torch.autograd.grad((kl_T * ramp_T).sum(), (student_TD, shard_VD))


def rank_job(implementation):
    group = dist.group.WORLD
    return {name: compute(name, implementation, dist.get_rank(), dist.get_world_size(), group) for name in CASES}


@pytest.mark.parametrize(
    ("size", "implementation"), [(2, "chunked"), (4, "chunked"), (2, "triton"), (4, "triton")], ids=str
)
def test_split_vocabulary_equals_one_rank(workers, size, implementation):
    parts = workers(size).run(rank_job, implementation=implementation)
    for name in parts[0]:
        value_T, grad_TD, grad_VD = compute(name)
        for part in parts:
            assert torch.equal(part[name][0], parts[0][name][0]), "ranks must agree on every bit"
        close = {"rtol": 1e-6, "atol": 1e-8} if implementation == "chunked" else {"rtol": 2e-4, "atol": 1e-4}
        if name == "extreme" and implementation == "triton":
            close = {"rtol": 1e-4, "atol": 1.0}
        got = parts[0][name][0], sum(part[name][1] for part in parts), torch.cat([part[name][2] for part in parts])
        for mine, expected in zip(got, (value_T, grad_TD, grad_VD), strict=True):
            assert mine.isfinite().all()
            torch.testing.assert_close(mine.double(), expected, **close, msg=lambda m, name=name: f"{name}: {m}")
