"""The truth: a dense mask and an fp32 softmax (fp64 for fp64 inputs). Memory H * T * S.

Shape suffixes: T query rows, S key rows, H query heads, G key/value heads, R = H / G, D head dimension.
"""

import torch

from osim_kernels.packed_attention.segments import Segments


def visible(segments: Segments, num_queries: int, num_keys: int) -> torch.Tensor:
    """bool [T, S] on the CPU: query row t sees key row s."""
    mask_TS = torch.zeros(num_queries, num_keys, dtype=torch.bool)
    for query_start, query_stop, key_start, key_stop, delta in segments.spans:
        rows_T, rows_S = torch.arange(query_start, query_stop), torch.arange(key_start, key_stop)
        distance_TS = rows_T[:, None] - (rows_S + delta)
        seen_TS = distance_TS >= 0
        if segments.window is not None:
            seen_TS &= distance_TS < segments.window
        mask_TS[query_start:query_stop, key_start:key_stop] |= seen_TS
    return mask_TS


def packed_attention_reference(query_THD, key_SGD, value_SGD, segments: Segments, softmax_scale: float):
    wide = torch.promote_types(query_THD.dtype, torch.float32)
    mask_TS = visible(segments, query_THD.shape[0], key_SGD.shape[0]).to(query_THD.device)
    groups = query_THD.shape[1] // key_SGD.shape[1]
    key_SHD = key_SGD.to(wide).repeat_interleave(groups, dim=1)
    value_SHD = value_SGD.to(wide).repeat_interleave(groups, dim=1)
    scores_HTS = torch.einsum("thd,shd->hts", query_THD.to(wide), key_SHD) * softmax_scale
    # softmax over nothing is NaN: give rows without keys a uniform softmax, then cut it away
    scores_HTS = scores_HTS.masked_fill(~mask_TS, torch.finfo(wide).min)
    weights_HTS = scores_HTS.softmax(dim=-1).masked_fill(~mask_TS, 0.0)
    return torch.einsum("hts,shd->thd", weights_HTS, value_SHD).to(query_THD.dtype)
