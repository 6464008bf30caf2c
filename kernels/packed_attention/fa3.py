"""FlashAttention-3 (Shah et al. 2024, arXiv 2407.08608) where its Hopper package is installed: plain packing only.

`flash_attn_interface.flash_attn_varlen_func` of the package flash_attn_3 (built from the hopper/ folder of
Dao-AILab/flash-attention). Borders come from `varlen.runs`: one run of queries and one of keys each, aligned at the
end, as its causal mask is. Asked for its deterministic backward, so that a resumed run repeats its bits. Checked
here up to the call with a stand-in; the kernel needs an H100.

Shape suffixes: T query rows, S key rows, K gathered key rows, H query heads, G key/value heads, D head dimension.
"""

from osim_kernels.packed_attention.segments import Segments
from osim_kernels.packed_attention.varlen import runs


def packed_attention_fa3(query_THD, key_SGD, value_SGD, segments: Segments, softmax_scale: float):
    from flash_attn_interface import flash_attn_varlen_func

    cu_queries, cu_keys, max_q, max_k, rows_K = runs(segments, query_THD.shape[0], key_SGD.shape[0])
    if rows_K is not None:
        key_SGD, value_SGD = key_SGD.index_select(0, rows_K), value_SGD.index_select(0, rows_K)
    return flash_attn_varlen_func(
        query_THD,
        key_SGD,
        value_SGD,
        cu_queries,
        cu_keys,
        max_q,
        max_k,
        softmax_scale=softmax_scale,
        causal=True,
        window_size=(-1 if segments.window is None else segments.window - 1, 0),  # to the left, to the right
        deterministic=True,
    )
