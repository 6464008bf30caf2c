"""Small Triton kernels to try the proof harness on, and the same with planted faults."""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from osim_kernels.proof import Case, Expect, hopper


@triton.jit
def matmul_kernel(a, b, c, M, N, K, stride_b, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        left = tl.load(a + row[:, None] * K + (k + inner)[None, :], mask=row[:, None] < M, other=0.0)
        right = tl.load(
            b + (k + inner)[:, None] * N * stride_b + column[None, :] * stride_b, mask=column[None, :] < N, other=0.0
        )
        total = tl.dot(left, right, total)
    tl.store(
        c + row[:, None] * N + column[None, :],
        total.to(c.dtype.element_ty),
        mask=(row[:, None] < M) & (column[None, :] < N),
    )


@triton.jit
def descriptor_matmul_kernel(a, b, c, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    row = tl.program_id(0) * BM
    column = tl.program_id(1) * BN
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        total = tl.dot(a.load([row, k]), b.load([k, column]), total)
    c.store([row, column], total.to(c.dtype))


@triton.autotune([triton.Config({"BLOCK": 512}), triton.Config({"BLOCK": 1024})], key=["n"])
@triton.jit
def tuned_double_kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < n) * 2, mask=at < n)


def matmul(a, b, tile=(32, 32, 32), stride_b=1, **options):
    """a [M, K] @ b [K, N], K a multiple of the tile's; b's elements stride_b apart."""
    rows, inner = a.shape
    columns = b.shape[1] // stride_b
    c = a.new_empty(rows, columns)
    grid = (triton.cdiv(rows, tile[0]), triton.cdiv(columns, tile[1]))
    matmul_kernel[grid](a, b, c, rows, columns, inner, stride_b, *tile, **options)
    return c


def descriptor_matmul(a, b, tile=(128, 128, 64), **options):
    """The same through host tensor descriptors; sizes are multiples of the tile."""
    c = a.new_empty(a.shape[0], b.shape[1])
    bm, bn, bk = tile
    described = [TensorDescriptor.from_tensor(x, shape) for x, shape in ((a, [bm, bk]), (b, [bk, bn]), (c, [bm, bn]))]
    descriptor_matmul_kernel[(c.shape[0] // bm, c.shape[1] // bn)](*described, a.shape[1], *tile, **options)
    return c


def double(x):
    """2 x, autotuned."""
    out = torch.empty_like(x)
    tuned_double_kernel[lambda meta: (triton.cdiv(x.numel(), meta["BLOCK"]),)](x, out, x.numel())
    return out


def _empty(rows, columns, dtype=torch.bfloat16):
    return torch.empty(rows, columns, dtype=dtype, device=hopper.DEVICE)


def _case(name, expect, launch):
    return Case(name=name, launch=launch, expect=expect)


GOOD = {"matmul_kernel": Expect(wgmma=True, async_copy=True, wide=True)}
TILE = (128, 128, 64)

CASES = (
    _case("sound", GOOD, lambda: matmul(_empty(512, 512), _empty(512, 512), TILE, num_warps=8, num_stages=3)),
    _case(
        "fp32 operands",
        GOOD,
        lambda: matmul(
            _empty(512, 512, torch.float32), _empty(512, 512, torch.float32), TILE, num_warps=8, num_stages=2
        ),
    ),
    _case("too many stages", GOOD, lambda: matmul(_empty(512, 512), _empty(512, 512), TILE, num_warps=8, num_stages=8)),
    _case(
        "4 warps on a tile for 8",
        GOOD,
        lambda: matmul(_empty(512, 512), _empty(512, 512), (128, 256, 64), num_warps=4, num_stages=3),
    ),
    _case(
        "strided loads",
        GOOD,
        lambda: matmul(_empty(512, 512), _empty(512, 1536), TILE, stride_b=3, num_warps=8, num_stages=3),
    ),
    _case(
        "descriptors",
        {"descriptor_matmul_kernel": Expect(wgmma=True, async_copy=True, wide=True)},
        lambda: descriptor_matmul(_empty(512, 512), _empty(512, 512), num_warps=8, num_stages=3),
    ),
    _case("autotuned", {"tuned_double_kernel": Expect(wide=True)}, lambda: double(_empty(64, 64, torch.float32))),
    _case("other kernel named", {"other_kernel": Expect()}, lambda: double(_empty(64, 64, torch.float32))),
    _case(
        "no warp specialisation",
        {"matmul_kernel": Expect(warp_specialized=True)},
        lambda: matmul(_empty(512, 512), _empty(512, 512), TILE, num_warps=8, num_stages=3),
    ),
)
