"""Packed attention: causal grouped-query attention over the documents of a packed row.

    from osim_kernels.packed_attention import Segments, packed_attention
    segments = Segments.from_cu_seqlens(batch.cu_seqlens)          # once per batch
    out_THD = packed_attention(query_THD, key_SGD, value_SGD, segments)   # every layer

Shape suffixes: T query rows, S key rows, H query heads, G key/value heads, D head dimension.
"""

import importlib.util

import torch

from osim_kernels.packed_attention.segments import Segments
from osim_kernels.registry import Implementation, Op, anywhere

__all__ = ["Segments", "packed_attention"]


def _load_reference():
    from osim_kernels.packed_attention.reference import packed_attention_reference

    return packed_attention_reference


def _load_sdpa():
    from osim_kernels.packed_attention.sdpa import packed_attention_sdpa

    return packed_attention_sdpa


def _load_fa3():
    from osim_kernels.packed_attention.fa3 import packed_attention_fa3

    return packed_attention_fa3


def _load_triton():
    from osim_kernels.packed_attention.triton import packed_attention_triton

    return packed_attention_triton


def _load_varlen():
    from osim_kernels.packed_attention.varlen import packed_attention_varlen

    return packed_attention_varlen


def _varlen_refuses(device, dtype, *, head_dim: int = 128, one_run_each: bool = True) -> str | None:
    if not one_run_each:
        return "knows no shared prefixes"
    if device.type != "cuda":
        return "needs a CUDA device"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs compute capability 8.0 or newer"
    if dtype not in (torch.bfloat16, torch.float16):
        return "takes bf16 and fp16 only"
    if head_dim > 256 or head_dim % 8:
        return f"takes head_dim up to 256 in steps of 8, not {head_dim}"
    return None


def _fa3_refuses(device, dtype, **case) -> str | None:
    why_not = _varlen_refuses(device, dtype, **case)
    if why_not is None and torch.cuda.get_device_capability(device)[0] != 9:
        why_not = "is written for compute capability 9"
    if why_not is None and importlib.util.find_spec("flash_attn_interface") is None:
        why_not = "flash_attn_interface is not installed"
    return why_not


def _triton_refuses(device, dtype, *, head_dim: int = 128, **case) -> str | None:
    if device.type != "cuda":
        return "needs a CUDA device"
    if torch.cuda.get_device_capability(device) < (9, 0):
        return "needs compute capability 9.0 or newer (TMA)"
    if dtype not in (torch.bfloat16, torch.float16):
        return "is for bf16 and fp16: fp32 without tensor cores spills registers"
    if head_dim > 256:
        return f"takes head_dim up to 256, not {head_dim}"
    return None


_op = Op(
    "packed_attention",
    Implementation(name="fa3", load=_load_fa3, refuses=_fa3_refuses),
    Implementation(name="triton", load=_load_triton, refuses=_triton_refuses),
    Implementation(name="varlen", load=_load_varlen, refuses=_varlen_refuses),
    Implementation(name="sdpa", load=_load_sdpa, refuses=anywhere),
    Implementation(name="reference", load=_load_reference, refuses=anywhere),
)


def packed_attention(
    query_THD: torch.Tensor,
    key_SGD: torch.Tensor,
    value_SGD: torch.Tensor,
    segments: Segments,
    softmax_scale: float | None = None,
) -> torch.Tensor:
    """Attention of packed queries to packed keys, causal inside each segment and its ancestors, blind to others.

    query_THD      [T, H, D] fp32, bf16 or fp16 (fp64 on the CPU)
    key_SGD        [S, G, D] of the same dtype; H is a multiple of G, query head h reads key head h // (H / G)
    value_SGD      [S, G, D]
    segments       who sees whom (Segments): documents, shared prefixes, a sliding window; S may differ from T, as
                   under context parallelism
    softmax_scale  multiplies the scores; None means D ** -0.5

    Returns [T, H, D] in the query's dtype; rows in no segment are 0 and pass no gradient. Differentiable in query,
    key and value. Raises ValueError when an `OSIM_KERNELS` override cannot run here.
    """
    num_heads, head_dim = query_THD.shape[1:]
    assert key_SGD.shape == value_SGD.shape and key_SGD.shape[2] == head_dim, (query_THD.shape, key_SGD.shape)
    assert num_heads % key_SGD.shape[1] == 0, f"{num_heads} query heads over {key_SGD.shape[1]} key heads"
    assert query_THD.dtype == key_SGD.dtype == value_SGD.dtype
    attend = _op.select(query_THD.device, query_THD.dtype, head_dim=head_dim, one_run_each=segments.one_run_each)
    return attend(query_THD, key_SGD, value_SGD, segments, head_dim**-0.5 if softmax_scale is None else softmax_scale)
