"""Rotary position embedding in the half-rotation layout of Hugging Face's Llama and Qwen.

    from osim_kernels.rope import rope, rope_tables
    cos_TD, sin_TD = rope_tables(batch.positions_T, head_dim, theta, scaling)   # once per batch
    query_THD, key_TGD = rope(query_THD, key_TGD, cos_TD, sin_TD)               # every layer

Shape suffixes: T tokens, H query heads, G key heads, D head dimension.
"""

import torch

from osim_kernels.registry import Implementation, Op, anywhere, needs_cuda
from osim_kernels.rope.tables import inverse_frequencies, rope_tables

__all__ = ["inverse_frequencies", "rope", "rope_tables"]


def _load_liger():
    from osim_kernels.rope.liger import rope_liger

    return rope_liger


def _load_reference():
    from osim_kernels.rope.reference import rope_reference

    return rope_reference


_op = Op(
    "rope",
    Implementation(name="liger", load=_load_liger, refuses=needs_cuda),
    Implementation(name="reference", load=_load_reference, refuses=anywhere),
)


def rope(
    query_THD: torch.Tensor, key_TGD: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate dimension d of each head against dimension d + D / 2, by the angle of its token.

    query_THD       [T, H, D] fp32, bf16 or fp16
    key_TGD         [T, G, D]
    cos_TD, sin_TD  fp32 [T, D] from `rope_tables`, already gathered by position id; products are taken in fp32

    Returns the rotated (query, key) in their own dtypes, as new tensors. Differentiable in query and key.
    """
    assert cos_TD.shape == sin_TD.shape == (query_THD.shape[0], query_THD.shape[2]), (
        cos_TD.shape,
        query_THD.shape,
    )
    return _op.select(query_THD.device, query_THD.dtype)(query_THD, key_TGD, cos_TD, sin_TD)
