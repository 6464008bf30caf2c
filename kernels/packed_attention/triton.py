"""Packed attention in Triton for Hopper: kernels in triton_forward.py and triton_backward.py, launched over tile plans.

Configurations are static, not autotuned: a resumed run must take the same one, or it is no longer bit-exact. Chosen
from what the compiler makes of them for sm_90a (audit.py); CANDIDATES are for `benchmarks kernels packed_attention
--tune` on a GPU.

Shape suffixes: T query rows, S key rows, H query heads, G key/value heads, D head dimension.
"""

from dataclasses import dataclass

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from osim_kernels.packed_attention.segments import Segments
from osim_kernels.packed_attention.triton_backward import grad_key_kernel, grad_query_kernel, row_dot_kernel
from osim_kernels.packed_attention.triton_forward import LOG2_E, forward_kernel

HEAD_DIMS = (64, 96, 128, 256)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Tile:
    """How one kernel runs: block of queries, block of keys, warps, and stages of its load pipeline."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Tiles:
    """The tiles of the three kernels that multiply."""

    forward: Tile
    grad_query: Tile
    grad_key: Tile


# by bytes of an element and padded head dimension
TILES = {
    (2, 64): Tiles(Tile(128, 128, 8, 2), Tile(128, 64, 8, 2), Tile(64, 128, 8, 2)),
    (2, 128): Tiles(Tile(128, 128, 8, 2), Tile(128, 64, 8, 2), Tile(64, 128, 8, 2)),
    (2, 256): Tiles(Tile(128, 64, 8, 2), Tile(64, 32, 4, 2), Tile(32, 64, 8, 2)),
    (4, 64): Tiles(Tile(32, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1)),
    (4, 128): Tiles(Tile(32, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1)),
    (4, 256): Tiles(Tile(16, 32, 4, 1), Tile(16, 32, 4, 1), Tile(32, 16, 4, 1)),
}


def packed_attention_triton(
    query_THD, key_SGD, value_SGD, segments: Segments, softmax_scale: float, tiles: Tiles | None = None
):
    """`tiles` overrides TILES, for tuning."""
    if tiles is None:
        tiles = TILES[query_THD.element_size(), triton.next_power_of_2(query_THD.shape[2])]
    return _PackedAttention.apply(query_THD, key_SGD, value_SGD, segments, softmax_scale, tiles)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query_THD, key_SGD, value_SGD, segments, softmax_scale, tiles):
        query_THD, key_SGD, value_SGD = (x.contiguous() for x in (query_THD, key_SGD, value_SGD))
        num_queries, heads, _ = query_THD.shape
        out_THD = torch.empty_like(query_THD)
        lse_HT = query_THD.new_empty(heads, num_queries, dtype=torch.float32)
        if num_queries:
            tile = tiles.forward
            plan = segments.tile_plan(num_queries, key_SGD.shape[0], tile.block_q, tile.block_k)
            forward_kernel[heads, plan.query_tiles.shape[0]](
                _rows(query_THD, tile.block_q),
                _rows(key_SGD, tile.block_k),
                _rows(value_SGD, tile.block_k),
                out_THD,
                lse_HT,
                plan.query_tiles,
                plan.pieces,
                num_queries,
                segments.window or 0,
                softmax_scale * LOG2_E,
                **_constants(query_THD, key_SGD, segments, tile),
                HEADS=heads,
            )
        ctx.save_for_backward(query_THD, key_SGD, value_SGD, out_THD, lse_HT)
        ctx.segments, ctx.softmax_scale, ctx.tiles = segments, softmax_scale, tiles
        return out_THD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out_THD):
        query_THD, key_SGD, value_SGD, out_THD, lse_HT = ctx.saved_tensors
        segments, scale = ctx.segments, ctx.softmax_scale
        grad_out_THD = grad_out_THD.contiguous()
        (num_queries, heads, head_dim), (num_keys, key_heads, _) = query_THD.shape, key_SGD.shape
        grad_query_THD, grad_key_SGD, grad_value_SGD = map(torch.empty_like, (query_THD, key_SGD, value_SGD))
        if not num_queries:
            return grad_query_THD, grad_key_SGD.zero_(), grad_value_SGD.zero_(), None, None, None
        dot_HT = torch.empty_like(lse_HT)
        block = 64
        row_dot_kernel[heads, triton.cdiv(num_queries, block)](
            out_THD,
            grad_out_THD,
            dot_HT,
            num_queries,
            HEADS=heads,
            HEAD_DIM=head_dim,
            BLOCK_Q=block,
            BLOCK_D=triton.next_power_of_2(head_dim),
        )
        tile = ctx.tiles.grad_query
        plan = segments.tile_plan(num_queries, num_keys, tile.block_q, tile.block_k)
        grad_query_kernel[heads, plan.query_tiles.shape[0]](
            _rows(query_THD, tile.block_q),
            _rows(key_SGD, tile.block_k),
            _rows(value_SGD, tile.block_k),
            _rows(grad_out_THD, tile.block_q),
            lse_HT,
            dot_HT,
            grad_query_THD,
            plan.query_tiles,
            plan.pieces,
            num_queries,
            segments.window or 0,
            scale,
            scale * LOG2_E,
            **_constants(query_THD, key_SGD, segments, tile),
            HEADS=heads,
        )
        tile = ctx.tiles.grad_key
        plan = segments.tile_plan(num_queries, num_keys, tile.block_q, tile.block_k)
        grad_key_kernel[key_heads, plan.key_tiles.shape[0]](
            _rows(query_THD, tile.block_q),
            _rows(key_SGD, tile.block_k),
            _rows(value_SGD, tile.block_k),
            _rows(grad_out_THD, tile.block_q),
            lse_HT,
            dot_HT,
            grad_key_SGD,
            grad_value_SGD,
            plan.key_tiles,
            plan.visits,
            num_queries,
            segments.window or 0,
            scale,
            scale * LOG2_E,
            **_constants(query_THD, key_SGD, segments, tile),
            KEY_HEADS=key_heads,
        )
        return grad_query_THD, grad_key_SGD, grad_value_SGD, None, None, None


def _rows(tensor_NHD: torch.Tensor, block: int) -> TensorDescriptor:
    """A descriptor that loads `block` rows of one head at a time."""
    shape, strides = list(tensor_NHD.shape), list(tensor_NHD.stride())
    return TensorDescriptor(tensor_NHD, shape, strides, [block, 1, triton.next_power_of_2(shape[2])])


def _constants(query_THD, key_SGD, segments: Segments, tile: Tile) -> dict:
    return {
        "GROUP": query_THD.shape[1] // key_SGD.shape[1],
        "HEAD_DIM": query_THD.shape[2],
        "WINDOWED": segments.window is not None,
        "BLOCK_Q": tile.block_q,
        "BLOCK_K": tile.block_k,
        "BLOCK_D": triton.next_power_of_2(query_THD.shape[2]),
        # TF32 would keep 10 bits of fp32 inputs; of half-precision ones every product is exact in fp32 anyway
        "PRECISION": "ieee",
        "STAGES": tile.num_stages,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }
