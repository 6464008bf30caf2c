"""Backward of packed attention on Hopper: three kernels without atomics, so two runs give equal bits.

    row_dot     dot of each output row with its upstream gradient
    grad_query  one program per (query head, query tile), over the keys that the tile sees
    grad_key    one program per (key head, key tile), over the queries that see the tile, head by head of the group

Weights are recomputed from the scores and the forward's log-sums (Dao et al., arXiv 2205.14135, algorithm 4).

Shape suffixes: T query rows, S key rows, H query heads, D head dimension, Q x K one block.
"""

import triton
import triton.language as tl

from osim_kernels.packed_attention.triton_forward import load_rows, store_rows


@triton.jit(do_not_specialize=["num_queries"])
def row_dot_kernel(
    out_THD,
    grad_out_THD,
    dot_HT,
    num_queries,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    head = tl.program_id(0)
    rows_Q = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    columns_D = tl.arange(0, BLOCK_D)
    offsets_QD = (rows_Q.to(tl.int64)[:, None] * HEADS + head) * HEAD_DIM + columns_D[None, :]
    inside_QD = (rows_Q < num_queries)[:, None] & (columns_D < HEAD_DIM)[None, :]
    out_QD = tl.load(out_THD + offsets_QD, mask=inside_QD, other=0.0).to(tl.float32)
    grad_QD = tl.load(grad_out_THD + offsets_QD, mask=inside_QD, other=0.0).to(tl.float32)
    tl.store(dot_HT + head.to(tl.int64) * num_queries + rows_Q, tl.sum(out_QD * grad_QD, 1), mask=rows_Q < num_queries)


@triton.jit
def _query_blocks(
    acc_QD,
    query_QD,
    grad_QD,
    lse_Q,
    dot_Q,
    keys,
    values,
    head,
    rows_Q,
    first,
    last,
    key_stop,
    delta,
    window,
    scale_log2,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Add score gradients times keys over the blocks of keys that start at first, first + BLOCK_K, ... below last."""
    for start in tl.range(first, last, BLOCK_K, num_stages=STAGES):
        key_KD = load_rows(keys, start, head, BLOCK_K, BLOCK_D)
        scores_QK = tl.dot(query_QD, key_KD.T, input_precision=PRECISION) * scale_log2
        if MASKED:
            rows_K = start + tl.arange(0, BLOCK_K)
            distance_QK = rows_Q[:, None] - (rows_K + delta)[None, :]
            seen_QK = (distance_QK >= 0) & (rows_K < key_stop)[None, :]
            if WINDOWED:
                seen_QK &= distance_QK < window
            scores_QK = tl.where(seen_QK, scores_QK, float("-inf"))
        weights_QK = tl.exp2(scores_QK - lse_Q[:, None])
        value_KD = load_rows(values, start, head, BLOCK_K, BLOCK_D)
        grad_weights_QK = tl.dot(grad_QD, value_KD.T, input_precision=PRECISION)
        grad_scores_QK = weights_QK * (grad_weights_QK - dot_Q[:, None])
        acc_QD = tl.dot(grad_scores_QK.to(key_KD.dtype), key_KD, acc_QD, input_precision=PRECISION)
    return acc_QD


@triton.jit(do_not_specialize=["num_queries", "window"])
def grad_query_kernel(
    queries,
    keys,
    values,
    grads,
    lse_HT,
    dot_HT,
    grad_query_THD,
    query_tiles,
    pieces,
    num_queries,
    window,
    scale,
    scale_log2,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOWED: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """queries, keys, values, grads: tensor descriptors over [rows, heads, D] with blocks [BLOCK, 1, BLOCK_D]."""
    head, tile = tl.program_id(0), query_tiles + 4 * tl.program_id(1)
    row_start, row_stop = tl.load(tile), tl.load(tile + 1)
    if row_start >= row_stop:
        return
    rows_Q = row_start + tl.arange(0, BLOCK_Q)
    inside_Q = rows_Q < row_stop
    query_QD = load_rows(queries, row_start, head, BLOCK_Q, BLOCK_D)
    grad_QD = load_rows(grads, row_start, head, BLOCK_Q, BLOCK_D)
    offsets_Q = head.to(tl.int64) * num_queries + rows_Q
    lse_Q = tl.load(lse_HT + offsets_Q, mask=inside_Q, other=float("inf"))
    dot_Q = tl.load(dot_HT + offsets_Q, mask=inside_Q, other=0.0)
    acc_QD = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for piece in range(tl.load(tile + 2), tl.load(tile + 3)):
        key_start = tl.load(pieces + 3 * piece)
        key_stop = tl.load(pieces + 3 * piece + 1)
        delta = tl.load(pieces + 3 * piece + 2)
        masked_from = key_start
        if not WINDOWED:  # whole blocks that even the tile's first row sees
            seen_by_all = tl.minimum(row_start - delta + 1, key_stop) - key_start
            masked_from += tl.maximum(seen_by_all, 0) // BLOCK_K * BLOCK_K
            acc_QD = _query_blocks(
                acc_QD, query_QD, grad_QD, lse_Q, dot_Q, keys, values, head // GROUP, rows_Q, key_start, masked_from,
                key_stop, delta, window, scale_log2, False, WINDOWED, BLOCK_K, BLOCK_D, PRECISION, STAGES,
            )  # fmt: skip
        acc_QD = _query_blocks(
            acc_QD, query_QD, grad_QD, lse_Q, dot_Q, keys, values, head // GROUP, rows_Q, masked_from, key_stop,
            key_stop, delta, window, scale_log2, True, WINDOWED, BLOCK_K, BLOCK_D, PRECISION, STAGES,
        )  # fmt: skip
    store_rows(grad_query_THD, acc_QD * scale, rows_Q, inside_Q, head, HEADS, HEAD_DIM, BLOCK_D)


@triton.jit
def _key_blocks(
    grad_key_KD,
    grad_value_KD,
    key_KD,
    value_KD,
    queries,
    grads,
    lse_T,
    dot_T,
    head,
    rows_K,
    first,
    last,
    query_stop,
    delta,
    window,
    scale_log2,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Add one head's share over the blocks of queries that start at first, first + BLOCK_Q, ... below last."""
    for start in tl.range(first, last, BLOCK_Q, num_stages=STAGES):
        query_QD = load_rows(queries, start, head, BLOCK_Q, BLOCK_D)
        rows_Q = start + tl.arange(0, BLOCK_Q)
        # past the visit's last query a log-sum of +inf makes every weight 0
        lse_Q = tl.load(lse_T + rows_Q, mask=rows_Q < query_stop, other=float("inf"))
        dot_Q = tl.load(dot_T + rows_Q, mask=rows_Q < query_stop, other=0.0)
        scores_KQ = tl.dot(key_KD, query_QD.T, input_precision=PRECISION) * scale_log2
        if MASKED:
            distance_KQ = rows_Q[None, :] - (rows_K + delta)[:, None]
            seen_KQ = distance_KQ >= 0
            if WINDOWED:
                seen_KQ &= distance_KQ < window
            scores_KQ = tl.where(seen_KQ, scores_KQ, float("-inf"))
        weights_KQ = tl.exp2(scores_KQ - lse_Q[None, :])
        grad_QD = load_rows(grads, start, head, BLOCK_Q, BLOCK_D)
        grad_value_KD = tl.dot(weights_KQ.to(grad_QD.dtype), grad_QD, grad_value_KD, input_precision=PRECISION)
        grad_weights_KQ = tl.dot(value_KD, grad_QD.T, input_precision=PRECISION)
        grad_scores_KQ = weights_KQ * (grad_weights_KQ - dot_Q[None, :])
        grad_key_KD = tl.dot(grad_scores_KQ.to(query_QD.dtype), query_QD, grad_key_KD, input_precision=PRECISION)
    return grad_key_KD, grad_value_KD


@triton.jit(do_not_specialize=["num_queries", "window"])
def grad_key_kernel(
    queries,
    keys,
    values,
    grads,
    lse_HT,
    dot_HT,
    grad_key_SGD,
    grad_value_SGD,
    key_tiles,
    visits,
    num_queries,
    window,
    scale,
    scale_log2,
    KEY_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOWED: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """queries, keys, values, grads: tensor descriptors over [rows, heads, D] with blocks [BLOCK, 1, BLOCK_D].

    A tile shorter than BLOCK_K computes rows of its neighbour too; they are not stored.
    """
    key_head, tile = tl.program_id(0), key_tiles + 4 * tl.program_id(1)
    row_start, row_stop = tl.load(tile), tl.load(tile + 1)
    if row_start >= row_stop:
        return
    rows_K = row_start + tl.arange(0, BLOCK_K)
    key_KD = load_rows(keys, row_start, key_head, BLOCK_K, BLOCK_D)
    value_KD = load_rows(values, row_start, key_head, BLOCK_K, BLOCK_D)
    grad_key_KD = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    grad_value_KD = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    visit_begin, visit_end = tl.load(tile + 2), tl.load(tile + 3)
    for head in range(key_head * GROUP, (key_head + 1) * GROUP):
        lse_T = lse_HT + head.to(tl.int64) * num_queries
        dot_T = dot_HT + head.to(tl.int64) * num_queries
        for visit in range(visit_begin, visit_end):
            query_start = tl.load(visits + 3 * visit)
            query_stop = tl.load(visits + 3 * visit + 1)
            delta = tl.load(visits + 3 * visit + 2)
            masked_to = query_stop
            if not WINDOWED:  # from here on every query sees the whole tile
                partly = tl.maximum(row_stop - 1 + delta - query_start, 0)
                masked_to = tl.minimum(query_start + tl.cdiv(partly, BLOCK_Q) * BLOCK_Q, query_stop)
            grad_key_KD, grad_value_KD = _key_blocks(
                grad_key_KD, grad_value_KD, key_KD, value_KD, queries, grads, lse_T, dot_T, head, rows_K, query_start,
                masked_to, query_stop, delta, window, scale_log2, True, WINDOWED, BLOCK_Q, BLOCK_D, PRECISION, STAGES,
            )  # fmt: skip
            if not WINDOWED:
                grad_key_KD, grad_value_KD = _key_blocks(
                    grad_key_KD, grad_value_KD, key_KD, value_KD, queries, grads, lse_T, dot_T, head, rows_K,
                    masked_to, query_stop, query_stop, delta, window, scale_log2, False, WINDOWED, BLOCK_Q, BLOCK_D,
                    PRECISION, STAGES,
                )  # fmt: skip
    inside_K = rows_K < row_stop
    store_rows(grad_key_SGD, grad_key_KD * scale, rows_K, inside_K, key_head, KEY_HEADS, HEAD_DIM, BLOCK_D)
    store_rows(grad_value_SGD, grad_value_KD, rows_K, inside_K, key_head, KEY_HEADS, HEAD_DIM, BLOCK_D)
