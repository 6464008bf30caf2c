"""PyTorch's scaled_dot_product_attention, one call per query range: the default on the CPU.

Why a loop: on the tiny model (T 1024, 8 heads of 32) one call per document was 2 to 4 times faster than one masked
call over the row or one padded batch, forward and backward, at mean document lengths from 50 to 400.
Runs on CUDA too, where `triton` is preferred.

Shape suffixes: T query rows, S key rows, H query heads, G key/value heads, D head dimension, Q x K one call.
"""

from itertools import chain, pairwise

import torch
import torch.nn.functional as F

from osim_kernels.packed_attention.segments import Segments, Span


def packed_attention_sdpa(query_THD, key_SGD, value_SGD, segments: Segments, softmax_scale: float):
    ranges = [(start, stop, [s for s in spans if s[2] < s[3]]) for start, stop, spans in segments.by_queries()]
    ranges = [(start, stop, spans) for start, stop, spans in ranges if spans]
    if not ranges:  # zeros that still pass (zero) gradients: a gather of the keys may wait for them on other ranks
        zero = query_THD[:0].sum() + key_SGD[:0].sum() + value_SGD[:0].sum()
        return torch.zeros_like(query_THD) + zero
    borders = [span[2:4] for _, _, spans in ranges for span in spans]
    queries = _cut(query_THD, [(start, stop) for start, stop, _ in ranges])
    keys, values = iter(_cut(key_SGD, borders)), iter(_cut(value_SGD, borders))
    outputs, covered = [], 0
    for (start, stop, spans), query_QHD in zip(ranges, queries, strict=True):
        key_KGD, value_KGD = (torch.cat([next(parts) for _ in spans]) for parts in (keys, values))
        outputs.append(query_THD.new_zeros(start - covered, *query_THD.shape[1:]))
        outputs.append(_attend(query_QHD, key_KGD, value_KGD, spans, segments.window, softmax_scale))
        covered = stop
    outputs.append(query_THD.new_zeros(query_THD.shape[0] - covered, *query_THD.shape[1:]))
    return torch.cat(outputs)


def _attend(query_QHD, key_KGD, value_KGD, spans: list[Span], window: int | None, softmax_scale: float):
    mask_QK = blind_Q = None
    query_start, query_stop, key_start, key_stop, delta = spans[0]
    square = len(spans) == 1 and query_stop - query_start == key_stop - key_start
    square = square and delta == query_start - key_start
    if not square or window is not None:
        mask_QK = _mask(spans, window).to(query_QHD.device)
        blind_Q = ~mask_QK.any(dim=1)
        mask_QK |= blind_Q[:, None]  # softmax over nothing is NaN: let these rows see all, then cut them away
    out_1HQD = F.scaled_dot_product_attention(
        *(x.transpose(0, 1)[None] for x in (query_QHD, key_KGD, value_KGD)),
        attn_mask=mask_QK,
        is_causal=mask_QK is None,
        scale=softmax_scale,
        enable_gqa=query_QHD.shape[1] != key_KGD.shape[1],
    )
    out_QHD = out_1HQD[0].transpose(0, 1)
    return out_QHD if blind_Q is None else out_QHD.masked_fill(blind_Q[:, None, None], 0.0)


def _mask(spans: list[Span], window: int | None) -> torch.Tensor:
    """bool [Q, K] of one query range and the keys of its spans, end to end."""
    rows_Q = torch.arange(*spans[0][:2])
    positions_K = torch.cat([torch.arange(start, stop) + delta for _, _, start, stop, delta in spans])
    distance_QK = rows_Q[:, None] - positions_K
    return distance_QK >= 0 if window is None else (distance_QK >= 0) & (distance_QK < window)


def _cut(rows: torch.Tensor, spans: list[tuple[int, int]]) -> list[torch.Tensor]:
    """rows[start:stop] of each span. Ascending spans are cut by one split, whose backward is one concatenation;
    slices, which overlapping key spans need, each cost a zero-filled gradient of all rows."""
    borders = [0, *chain.from_iterable(spans), rows.shape[0]]
    sizes = [stop - start for start, stop in pairwise(borders)]
    if min(sizes) < 0:
        return [rows[start:stop] for start, stop in spans]
    return list(rows.split(sizes))[1::2]
