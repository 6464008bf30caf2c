"""torch.nn.attention.varlen (FlashAttention inside PyTorch): the default on CUDA in bf16 and fp16.

FlashAttention takes one run of queries and one of keys, cut at cumulative borders, and aligns its causal mask at the
bottom right as `Segments` does. Document packing fits as it is. Overlapping key spans (context parallelism) are
gathered into one run first, at most about two extra copies of the row's keys for a zigzag pair of chunks, and the
gather's backward sums their gradients. Stretches of queries in no segment become segments without keys, which the
kernel answers with 0.

Written against the 2.13 signature and checked here on the CPU only up to the call (borders and gather); the kernel
itself needs a GPU.

Shape suffixes: T query rows, S key rows, K gathered key rows, H query heads, G key/value heads, D head dimension.
"""

from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from torch.nn.attention.varlen import varlen_attn

from osim_kernels.packed_attention.segments import Segments


def packed_attention_varlen(query_THD, key_SGD, value_SGD, segments: Segments, softmax_scale: float):
    cu_queries, cu_keys, max_q, max_k, rows_K = runs(segments, query_THD.shape[0], key_SGD.shape[0])
    if rows_K is not None:
        key_SGD, value_SGD = key_SGD.index_select(0, rows_K), value_SGD.index_select(0, rows_K)
    return varlen_attn(
        query_THD,
        key_SGD,
        value_SGD,
        cu_queries,
        cu_keys,
        max_q,
        max_k,
        scale=softmax_scale,
        window_size=(-1 if segments.window is None else segments.window - 1, 0),  # to the left, to the right
        enable_gqa=query_THD.shape[1] != key_SGD.shape[1],
    )


@lru_cache(maxsize=32)  # one entry per batch in flight: every layer and the recomputation read the same plan
def runs(segments: Segments, num_queries: int, num_keys: int):
    """(cu_queries int32 [m + 1], cu_keys int32 [m + 1], longest run of queries, of keys, int64 [K] to gather or None).

    m exceeds the number of segments where stretches of queries in no segment had to be filled in. Rows are None when
    the key spans already tile the keys: the kernel leaves gradients of keys outside its borders unwritten.
    """
    assert segments.one_run_each, "shared prefixes are not for varlen"
    query_borders, key_spans = [0], []
    for query_start, query_stop, key_start, key_stop, _ in segments.spans:
        if query_borders[-1] < query_start:
            query_borders.append(query_start)
            key_spans.append((key_start, key_start))
        query_borders.append(query_stop)
        key_spans.append((key_start, key_stop))
    if query_borders[-1] < num_queries:
        query_borders.append(num_queries)
        key_spans.append((num_keys, num_keys))
    key_borders = list(accumulate((stop - start for start, stop in key_spans), initial=0))
    spans_from = zip(key_spans, key_borders, strict=False)
    tiled = all(start in (border, stop) for (start, stop), border in spans_from)
    rows_K = None
    if not (tiled and key_borders[-1] == num_keys):
        rows_K = torch.cat([torch.arange(start, stop) for start, stop in key_spans]).to(segments.device)
    cu_queries, cu_keys = (torch.tensor(b, dtype=torch.int32).to(segments.device) for b in (query_borders, key_borders))
    max_q, max_k = (max(stop - start for start, stop in pairwise(b)) for b in (query_borders, key_borders))
    return cu_queries, cu_keys, max_q, max_k, rows_K
