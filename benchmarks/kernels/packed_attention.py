"""Packed attention: one row of 16,384 tokens of packed documents, 32 query heads over 8 key heads of 128.

Shape suffixes: T tokens, H query heads, G key/value heads, D head dimension.
"""

from dataclasses import replace
from itertools import pairwise
from unittest import mock

import numpy as np
import torch

from benchmarks.kernels.measure import Problem
from benchmarks.kernels.offline_report import Work
from benchmarks.kernels.peers import installed
from benchmarks.kernels.tile_counts import CAPACITY, DISTRIBUTIONS, lengths_of, packed_rows
from osim_kernels.packed_attention import Segments
from osim_kernels.packed_attention.sdpa import packed_attention_sdpa
from osim_kernels.packed_attention.triton import CANDIDATES, CONFIGS, packed_attention_triton
from osim_kernels.packed_attention.varlen import packed_attention_varlen

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128


def row_borders(distribution: str) -> list[int]:
    """Borders of the documents of the middle row of a packed corpus."""
    packed = packed_rows(lengths_of(distribution))
    return np.concatenate([[0], np.cumsum(packed[len(packed) // 2])]).tolist()


def work() -> dict[str, Work]:
    """Forward does two products over each document's causal triangle, backward five; K and V count once a row."""
    borders = row_borders("odyssim")
    triangle = sum((stop - start) * (stop - start + 1) / 2 for start, stop in pairwise(borders))
    rows = 2 * CAPACITY * (2 * HEADS + 2 * KV_HEADS) * HEAD_DIM
    tile = CONFIGS[2, HEAD_DIM].forward
    tile_flops, tile_bytes = 4 * tile.block_q * tile.block_k * HEAD_DIM, 2 * 2 * tile.block_k * HEAD_DIM
    shape = f"T {CAPACITY}, {len(borders) - 1} documents, H {HEADS}, G {KV_HEADS}, D {HEAD_DIM}"
    return {
        "forward": Work(shape, 4 * HEADS * HEAD_DIM * triangle, rows, tile_flops, tile_bytes),
        "backward": Work(shape, 10 * HEADS * HEAD_DIM * triangle, 2 * rows, 2.5 * tile_flops, 2 * tile_bytes),
    }


def offline_peers() -> dict:
    """flash-linear-attention's variable-length softmax attention, in its configuration for Hopper."""
    if not installed("fla"):
        return {}
    from fla.ops.attn import parallel  # now: under the absent H100 it would look for CUDA devices

    return {"fla parallel_attn": lambda: _fla(parallel)}


def _fla(parallel) -> None:
    shape = (1, 1024, 8, HEAD_DIM), (1, 1024, 2, HEAD_DIM), (1, 1024, 2, HEAD_DIM)
    query, key, value = (torch.zeros(size, dtype=torch.bfloat16, requires_grad=True) for size in shape)
    borders = torch.tensor([0, 100, 612, 1024], dtype=torch.int32)
    # it asks a real driver how much shared memory there is, and without one takes its smallest tiles
    with mock.patch.object(parallel, "check_shared_mem", lambda *_: True):
        parallel.parallel_attn(query, key, value, cu_seqlens=borders).sum().backward()


def problems(device: torch.device) -> list[Problem]:
    """Both length distributions, bf16."""
    return [
        problem(row_borders(distribution), HEADS, KV_HEADS, HEAD_DIM, device, torch.bfloat16, distribution)
        for distribution in DISTRIBUTIONS
    ]


def problem(borders, heads, kv_heads, head_dim, device, dtype, name) -> Problem:
    """Documents at `borders`; a tiny one runs in the interpreter."""
    tokens = borders[-1]
    segments = Segments.from_cu_seqlens(torch.tensor(borders, dtype=torch.int32)).to(device)
    inputs = {
        name: torch.randn(tokens, width, head_dim, device=device, dtype=dtype)
        for name, width in (("query", heads), ("key", kv_heads), ("value", kv_heads))
    }
    scale = head_dim**-0.5
    contenders = {"osim": lambda query, key, value: packed_attention_triton(query, key, value, segments, scale)}
    if device.type == "cuda":
        contenders |= _gpu_peers(segments, borders, scale, device)
    triangle = sum((stop - start) * (stop - start + 1) / 2 for start, stop in pairwise(borders))
    flops = 4 * heads * head_dim * triangle
    moved = sum(x.nbytes for x in inputs.values()) + inputs["query"].nbytes
    return Problem(
        op="packed_attention",
        case={"lengths": name, "tokens": tokens, "documents": len(borders) - 1, "heads": heads, "kv_heads": kv_heads}
        | {"head_dim": head_dim, "dtype": str(dtype).removeprefix("torch.")},
        inputs=inputs,
        learned=("query", "key", "value"),
        truth=lambda query, key, value: packed_attention_sdpa(query, key, value, segments, scale),
        contenders=contenders,
        tolerance=2e-2 if dtype != torch.float32 else 1e-5,
        flops=(flops, 3.5 * flops),
        moved_bytes=(moved, 3 * moved),
        candidates=_candidates(head_dim) if dtype != torch.float32 else {},
    )


def _candidates(head_dim: int) -> dict:
    """One kernel's configuration changed at a time."""
    shipped = CONFIGS[2, head_dim]

    def configured(part, config):
        return lambda: mock.patch.dict(CONFIGS, {(2, head_dim): replace(shipped, **{part: config})})

    return {
        f"{part} {config.name}": configured(part, config)
        for (size, part), configs in CANDIDATES.items()
        if size == head_dim
        for config in configs
    }


def _gpu_peers(segments, borders, scale, device) -> dict:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    cu_seqlens = torch.tensor(borders, dtype=torch.int32, device=device)
    longest = int(cu_seqlens.diff().max())
    document_T = torch.bucketize(torch.arange(borders[-1], device=device), cu_seqlens[1:], right=True)

    def sees(batch, head, query, key):
        return (query >= key) & (document_T[query] == document_T[key])

    mask = create_block_mask(sees, None, None, borders[-1], borders[-1], device=device)
    compiled = torch.compile(flex_attention)

    def flex(query, key, value):
        batched = (x.transpose(0, 1)[None] for x in (query, key, value))
        return compiled(*batched, block_mask=mask, scale=scale, enable_gqa=True)[0].transpose(0, 1)

    peers = {
        "torch varlen": lambda query, key, value: packed_attention_varlen(query, key, value, segments, scale),
        "flex_attention": flex,
    }
    if installed("flash_attn"):
        from flash_attn import flash_attn_varlen_func

        peers["flash_attn 2"] = lambda query, key, value: flash_attn_varlen_func(
            query, key, value, cu_seqlens, cu_seqlens, longest, longest, softmax_scale=scale, causal=True
        )
    if installed("flash_attn_interface"):
        from flash_attn_interface import flash_attn_varlen_func as flash_attn_3

        peers["flash_attn 3"] = lambda query, key, value: flash_attn_3(
            query, key, value, cu_seqlens, cu_seqlens, longest, longest, softmax_scale=scale, causal=True
        )
    if installed("fla"):
        from fla.ops.attn.parallel import parallel_attn

        peers["fla parallel_attn"] = lambda query, key, value: parallel_attn(
            query[None], key[None], value[None], scale=scale, cu_seqlens=cu_seqlens
        )[0]
    return peers
