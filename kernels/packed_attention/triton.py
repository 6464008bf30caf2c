"""Triton for Hopper: attention over a tile plan, forward and deterministic backward, for every mask Segments can say.

The plan (tiles.py) is built once per batch and read by all layers: grids and tables follow it, so new borders mean
neither a wait for the device nor a recompilation. TMA brings the blocks; they may run past a document's end, into
rows whose weight is then zero. Kernels: forward.py, backward.py.

Shape suffixes: T query rows, S key rows, H query heads, G key/value heads, D head dimension.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from osim_kernels.packed_attention.backward import _key_gradient_kernel, _query_gradient_kernel, _row_sums_kernel
from osim_kernels.packed_attention.forward import _forward_kernel
from osim_kernels.packed_attention.segments import Segments

ROW_SUMS_BLOCK = 64


@dataclass(frozen=True)
class Config:
    """One static configuration of a kernel: rows of queries x keys, warps, pipeline stages."""

    block_q: int
    block_k: int
    warps: int
    stages: int

    @property
    def name(self) -> str:
        return f"{self.block_q}x{self.block_k} w{self.warps} s{self.stages}"


@dataclass(frozen=True)
class Configs:
    """The configurations of one element size and head dimension."""

    forward: Config
    query_gradient: Config
    key_gradient: Config


# (element size, head dimension); chosen by the compile audit, not by timing. Fixed tables, because a
# configuration picked by timing could differ after a resume and change bits.
CONFIGS = {
    (2, 64): Configs(Config(128, 128, 8, 2), Config(128, 64, 8, 2), Config(64, 128, 8, 2)),
    (2, 128): Configs(Config(128, 64, 8, 2), Config(128, 64, 8, 2), Config(32, 128, 8, 2)),
    (2, 256): Configs(Config(128, 64, 8, 2), Config(64, 64, 8, 2), Config(32, 64, 8, 2)),
    # fp32 without tensor cores spills in every size tried: only for comparing values, the registry does not pick it
    (4, 64): Configs(Config(32, 32, 8, 2), Config(32, 16, 8, 2), Config(16, 32, 8, 2)),
    (4, 128): Configs(Config(32, 32, 8, 2), Config(32, 16, 8, 2), Config(16, 32, 8, 2)),
    (4, 256): Configs(Config(32, 32, 8, 2), Config(32, 16, 8, 2), Config(16, 32, 8, 2)),
}
# What `python -m benchmarks kernels packed_attention --tune` times on a GPU, for 16-bit elements.
CANDIDATES = {
    (64, "forward"): [Config(128, 128, 8, 2), Config(128, 64, 8, 3), Config(64, 64, 4, 3)],
    (64, "query_gradient"): [Config(128, 64, 8, 2), Config(128, 128, 8, 2)],
    (64, "key_gradient"): [Config(64, 128, 8, 2), Config(64, 64, 4, 2)],
    (128, "forward"): [Config(128, 64, 8, 2), Config(128, 64, 8, 3), Config(64, 64, 4, 3)],
    (128, "query_gradient"): [Config(128, 64, 8, 2), Config(64, 64, 4, 2)],
    (128, "key_gradient"): [Config(32, 128, 8, 2), Config(32, 128, 8, 3), Config(32, 64, 4, 2)],
    (256, "forward"): [Config(128, 64, 8, 2), Config(64, 64, 4, 2)],
    (256, "query_gradient"): [Config(64, 64, 8, 2), Config(64, 32, 4, 2)],
    (256, "key_gradient"): [Config(32, 64, 8, 2)],
}


def packed_attention_triton(query_THD, key_SGD, value_SGD, segments: Segments, softmax_scale: float):
    """The op of __init__.py in bf16 and fp16; fp32 (multiplied in fp32, not TF32) is right but slow.

    Head dimensions between 64, 128 and 256 are padded to the next, which copies query, key and value.

    Raises ValueError for a head dimension or a scale that the kernels do not take, and for segments whose plan lies
    on another device than the tensors.
    """
    why_not = refuses_shape(query_THD.dtype, query_THD.shape[2])
    if why_not:
        raise ValueError(f"packed_attention: triton {why_not}")
    if not softmax_scale > 0:
        raise ValueError(f"packed_attention: softmax_scale must be positive, got {softmax_scale}")
    if not len(query_THD) or not len(key_SGD):  # TMA describes no empty tensor; zeros that still pass zero gradients
        return torch.zeros_like(query_THD) + (query_THD[:0].sum() + key_SGD[:0].sum() + value_SGD[:0].sum())
    head_dim = query_THD.shape[2]
    padding = _kernel_head_dim(head_dim) - head_dim
    if padding:  # zeros change no score, and their columns of the output are zero
        query_THD, key_SGD, value_SGD = (F.pad(x, (0, padding)) for x in (query_THD, key_SGD, value_SGD))
    return _PackedAttention.apply(query_THD, key_SGD, value_SGD, segments, softmax_scale)[..., :head_dim]


def refuses_shape(dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the kernels cannot take this case, or None."""
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"takes bf16, fp16 and fp32, not {str(dtype).removeprefix('torch.')}"
    if head_dim > 256:
        return f"takes head_dim up to 256, not {head_dim}"
    return None


def _kernel_head_dim(head_dim: int) -> int:
    """The next of 64, 128 and 256, which the kernels take."""
    return max(64, triton.next_power_of_2(head_dim))


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query_THD, key_SGD, value_SGD, segments, softmax_scale):
        query_THD, key_SGD, value_SGD = map(_operand, (query_THD, key_SGD, value_SGD))
        out_THD, lse_HT = launch_forward(query_THD, key_SGD, value_SGD, segments, softmax_scale)
        ctx.save_for_backward(query_THD, key_SGD, value_SGD, out_THD, lse_HT)
        ctx.segments, ctx.softmax_scale = segments, softmax_scale
        return out_THD

    @staticmethod
    def backward(ctx, d_out_THD):
        query_THD, key_SGD, value_SGD, out_THD, lse_HT = ctx.saved_tensors
        d_out_THD = _operand(d_out_THD)
        operands = query_THD, key_SGD, value_SGD, d_out_THD, lse_HT, launch_row_sums(out_THD, d_out_THD)
        needs_query, *needs_keys = ctx.needs_input_grad[:3]
        d_query_THD = d_key_SGD = d_value_SGD = None
        if needs_query:
            d_query_THD = launch_query_gradient(*operands, ctx.segments, ctx.softmax_scale)
        if any(needs_keys):
            d_key_SGD, d_value_SGD = launch_key_gradient(*operands, ctx.segments, ctx.softmax_scale)
        return d_query_THD, d_key_SGD, d_value_SGD, None, None


def launch_forward(query_THD, key_SGD, value_SGD, segments, softmax_scale, config: Config | None = None):
    """(out [T, H, D], lse fp32 [H, T] in units of log2, -inf for queries that see nothing)."""
    config = config or _configs(query_THD).forward
    out_THD = torch.empty_like(query_THD)
    lse_HT = torch.empty(query_THD.shape[1], query_THD.shape[0], dtype=torch.float32, device=query_THD.device)
    plan = _plan(query_THD, key_SGD, segments, config)
    heads = query_THD.shape[1]
    _forward_kernel[(len(plan.query_tiles) * heads,)](
        _rows(query_THD, config.block_q), _rows(key_SGD, config.block_k), _rows(value_SGD, config.block_k),
        out_THD, lse_HT, plan.query_tiles, plan.pieces, query_THD.shape[0], segments.window or 0,
        softmax_scale * math.log2(math.e), **_constants(query_THD, key_SGD, segments, config),
    )  # fmt: skip
    return out_THD, lse_HT


def launch_row_sums(out_THD, d_out_THD):
    """sum over D of out * d_out, fp32 [H, T]."""
    num_queries, heads, head_dim = out_THD.shape
    sums_HT = torch.empty(heads, num_queries, dtype=torch.float32, device=out_THD.device)
    _row_sums_kernel[(triton.cdiv(num_queries, ROW_SUMS_BLOCK) * heads,)](
        out_THD, d_out_THD, sums_HT, num_queries,
        HEADS=heads, D=head_dim, BLOCK_Q=ROW_SUMS_BLOCK, num_warps=8,
    )  # fmt: skip
    return sums_HT


def launch_query_gradient(
    query_THD, key_SGD, value_SGD, d_out_THD, lse_HT, sums_HT, segments, softmax_scale, config: Config | None = None
):
    """d_query [T, H, D]."""
    config = config or _configs(query_THD).query_gradient
    d_query_THD = torch.empty_like(query_THD)
    plan = _plan(query_THD, key_SGD, segments, config)
    _query_gradient_kernel[(len(plan.query_tiles) * query_THD.shape[1],)](
        _rows(query_THD, config.block_q), _rows(key_SGD, config.block_k), _rows(value_SGD, config.block_k),
        _rows(d_out_THD, config.block_q), lse_HT, sums_HT, d_query_THD, plan.query_tiles, plan.pieces,
        query_THD.shape[0], segments.window or 0, softmax_scale * math.log2(math.e), softmax_scale,
        **_constants(query_THD, key_SGD, segments, config),
    )  # fmt: skip
    return d_query_THD


def launch_key_gradient(
    query_THD, key_SGD, value_SGD, d_out_THD, lse_HT, sums_HT, segments, softmax_scale, config: Config | None = None
):
    """(d_key, d_value), both [S, G, D]."""
    config = config or _configs(query_THD).key_gradient
    d_key_SGD, d_value_SGD = torch.empty_like(key_SGD), torch.empty_like(value_SGD)
    plan = _plan(query_THD, key_SGD, segments, config)
    _key_gradient_kernel[(len(plan.key_tiles) * key_SGD.shape[1],)](
        _rows(query_THD, config.block_q), _rows(key_SGD, config.block_k), _rows(value_SGD, config.block_k),
        _rows(d_out_THD, config.block_q), lse_HT, sums_HT, d_key_SGD, d_value_SGD, plan.key_tiles, plan.visits,
        query_THD.shape[0], segments.window or 0, softmax_scale * math.log2(math.e), softmax_scale,
        **_constants(query_THD, key_SGD, segments, config),
    )  # fmt: skip
    return d_key_SGD, d_value_SGD


def _configs(query_THD) -> Configs:
    return CONFIGS[query_THD.dtype.itemsize, query_THD.shape[2]]


def _plan(query_THD, key_SGD, segments, config):
    plan = segments.tile_plan(query_THD.shape[0], key_SGD.shape[0], config.block_q, config.block_k)
    if plan.query_tiles.device != query_THD.device:
        raise ValueError(
            f"packed_attention: segments are on {segments.device}, tensors on {query_THD.device}; use segments.to"
        )
    return plan


def _rows(x_THD, block: int) -> TensorDescriptor:
    """TMA descriptor of `block` rows of one head; rows behind the tensor read as zero."""
    return TensorDescriptor.from_tensor(x_THD.flatten(1), [block, x_THD.shape[2]])


def _constants(query_THD, key_SGD, segments, config: Config):
    _, heads, head_dim = query_THD.shape
    return dict(
        HEADS=heads,
        GROUP=heads // key_SGD.shape[1],
        D=head_dim,
        BLOCK_Q=config.block_q,
        BLOCK_K=config.block_k,
        PRECISION="ieee",  # fp32 stays fp32; 16-bit operands are exact either way
        WINDOW=segments.window is not None,
        num_warps=config.warps,
        num_stages=config.stages,
    )


def _operand(x: torch.Tensor) -> torch.Tensor:
    """Contiguous, on a 16-byte border: what TMA takes."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()
