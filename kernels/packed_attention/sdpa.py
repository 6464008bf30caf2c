"""PyTorch's scaled_dot_product_attention, one call per segment: the default on the CPU.

Why a loop: on the tiny model (T 1024, 8 heads of 32) one call per document was 2 to 4 times faster than one masked
call over the row or one padded batch, forward and backward, at mean document lengths from 50 to 400.
Runs on CUDA too, where `varlen` is preferred.

Shape suffixes: T query rows, S key rows, H query heads, G key/value heads, D head dimension.
"""

from itertools import chain, pairwise

import torch
import torch.nn.functional as F

from osim_kernels.packed_attention.segments import Segments, Span


def packed_attention_sdpa(query_THD, key_SGD, value_SGD, segments: Segments, softmax_scale: float):
    spans = [span for span in map(_trim, segments.spans) if span[0] < span[1]]
    if not spans:  # zeros that still pass (zero) gradients: a gather of the keys may wait for them on other ranks
        zero = query_THD[:0].sum() + key_SGD[:0].sum() + value_SGD[:0].sum()
        return torch.zeros_like(query_THD) + zero
    queries = _cut(query_THD, [span[:2] for span in spans])
    keys = _cut(key_SGD, [span[2:] for span in spans])
    values = _cut(value_SGD, [span[2:] for span in spans])
    outputs, covered = [], 0
    for (query_start, query_stop, _, _), query, key, value in zip(spans, queries, keys, values, strict=True):
        outputs.append(query_THD.new_zeros(query_start - covered, *query_THD.shape[1:]))
        outputs.append(_attend(query, key, value, softmax_scale))
        covered = query_stop
    outputs.append(query_THD.new_zeros(query_THD.shape[0] - covered, *query_THD.shape[1:]))
    return torch.cat(outputs)


def _attend(query_QHD, key_KGD, value_KGD, softmax_scale: float):
    num_queries, num_keys = query_QHD.shape[0], key_KGD.shape[0]
    mask = None
    if num_queries < num_keys:  # is_causal would align the mask at the start
        mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query_QHD.device)
        mask = mask.tril(num_keys - num_queries)
    out_1HQD = F.scaled_dot_product_attention(
        *(x.transpose(0, 1)[None] for x in (query_QHD, key_KGD, value_KGD)),
        attn_mask=mask,
        is_causal=mask is None,
        scale=softmax_scale,
        enable_gqa=query_QHD.shape[1] != key_KGD.shape[1],
    )
    return out_1HQD[0].transpose(0, 1)


def _trim(span: Span) -> Span:
    """The span without its leading queries that see no key (more queries than keys)."""
    query_start, query_stop, key_start, key_stop = span
    return max(query_start, query_stop - (key_stop - key_start)), query_stop, key_start, key_stop


def _cut(rows: torch.Tensor, spans: list[tuple[int, int]]) -> list[torch.Tensor]:
    """rows[start:stop] of each span. Ascending spans are cut by one split, whose backward is one concatenation;
    slices, which overlapping key spans need, each cost a zero-filled gradient of all rows."""
    borders = [0, *chain.from_iterable(spans), rows.shape[0]]
    sizes = [stop - start for start, stop in pairwise(borders)]
    if min(sizes) < 0:
        return [rows[start:stop] for start, stop in spans]
    return list(rows.split(sizes))[1::2]
