"""Liger's Triton RoPE (CUDA), which rotates in place; the copy keeps the op pure for callers and for autograd."""

import torch
from liger_kernel.ops.rope import LigerRopeFunction


def rope_liger(query_THD, key_TGD, cos_TD, sin_TD):
    # Liger takes [batch, heads, tokens, head_dim] and undoes the transpose; a contiguous clone makes that free
    query, key = (x.clone(memory_format=torch.contiguous_format)[None].transpose(1, 2) for x in (query_THD, key_TGD))
    rotated_query, rotated_key = LigerRopeFunction.apply(query, key, cos_TD, sin_TD)
    return rotated_query[0].transpose(0, 1), rotated_key[0].transpose(0, 1)
