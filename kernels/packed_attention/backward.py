"""Backward kernels, without atomics, so that every run gives the same bits.

FlashAttention-2 (Dao 2023, arXiv 2307.08691, algorithm 2), cut into three: the row sums of out * d_out; dQ per query
tile; dK and dV per key tile, whose program walks the query heads of its group and the visits in a fixed order.
Recomputing the scores twice costs two products of seven; it buys determinism without a second pass over partial sums.

Shape suffixes: Q query rows, K keys, D head dimension.
"""

import triton
import triton.language as tl

from osim_kernels.packed_attention.blocks import NEVER, full_key_blocks, full_query_blocks, nth_masked, sees


@triton.jit(do_not_specialize=["num_queries"])
def _row_sums_kernel(
    out_ptr, d_out_ptr, sums_ptr, num_queries,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """sum over D of out * d_out, fp32 [H, T]: what the softmax's backward subtracts from every d_weight of a row."""
    head = tl.program_id(0) % HEADS
    rows_Q = (tl.program_id(0) // HEADS) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    dims_D = tl.arange(0, D)
    offsets_QD = rows_Q.to(tl.int64)[:, None] * (HEADS * D) + head * D + dims_D[None, :]
    inside_QD = (rows_Q < num_queries)[:, None]
    out_QD = tl.load(out_ptr + offsets_QD, mask=inside_QD, other=0.0).to(tl.float32)
    d_out_QD = tl.load(d_out_ptr + offsets_QD, mask=inside_QD, other=0.0).to(tl.float32)
    sums_Q = tl.sum(out_QD * d_out_QD, 1)
    tl.store(sums_ptr + head.to(tl.int64) * num_queries + rows_Q, sums_Q, mask=rows_Q < num_queries)


@triton.jit
def _query_gradient(
    d_query_QD, query_QD, d_out_QD, lse_Q, sums_Q, keys, values, kv_head, scale, key_begin, key_stop, rows_Q, delta,
    window, BLOCK_K: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
    WINDOW: tl.constexpr,
):  # fmt: skip
    """d_query after one block of keys, still without the softmax scale."""
    key_KD = keys.load([key_begin, kv_head * D])
    value_KD = values.load([key_begin, kv_head * D])
    scores_QK = tl.dot(query_QD, key_KD.T, input_precision=PRECISION)
    weights_QK = tl.exp2(scores_QK * scale - lse_Q[:, None])
    if MASKED:
        keys_K = key_begin + tl.arange(0, BLOCK_K)
        positions_K = tl.where(keys_K < key_stop, keys_K + delta, NEVER)
        seen_QK = sees(rows_Q[:, None], positions_K[None, :], window, WINDOW)
        weights_QK = tl.where(seen_QK, weights_QK, 0.0)
    d_weights_QK = tl.dot(d_out_QD, value_KD.T, input_precision=PRECISION)
    d_scores_QK = weights_QK * (d_weights_QK - sums_Q[:, None])
    return tl.dot(d_scores_QK.to(key_KD.dtype), key_KD, d_query_QD, input_precision=PRECISION)


@triton.jit(do_not_specialize=["num_queries", "window"])
def _query_gradient_kernel(
    queries, keys, values, d_outs, lse_ptr, sums_ptr, d_query_ptr, tiles_ptr, pieces_ptr, num_queries, window, scale,
    softmax_scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % HEADS
    tile = tl.program_id(0) // HEADS
    kv_head = head // GROUP
    row_start = tl.load(tiles_ptr + tile * 4)
    row_stop = tl.load(tiles_ptr + tile * 4 + 1)
    piece_begin = tl.load(tiles_ptr + tile * 4 + 2)
    piece_end = tl.load(tiles_ptr + tile * 4 + 3)
    rows_Q = row_start + tl.arange(0, BLOCK_Q)
    inside_Q = rows_Q < row_stop
    query_QD = queries.load([row_start, head * D])
    d_out_QD = d_outs.load([row_start, head * D])
    lse_Q = tl.load(lse_ptr + head.to(tl.int64) * num_queries + rows_Q, mask=inside_Q, other=float("inf"))
    sums_Q = tl.load(sums_ptr + head.to(tl.int64) * num_queries + rows_Q, mask=inside_Q, other=0.0)
    d_query_QD = tl.zeros([BLOCK_Q, D], tl.float32)
    for piece in range(piece_begin, piece_end):
        key_start = tl.load(pieces_ptr + piece * 3)
        key_stop = tl.load(pieces_ptr + piece * 3 + 1)
        delta = tl.load(pieces_ptr + piece * 3 + 2)
        first_full, last_full, blocks = full_key_blocks(
            row_start, row_stop, key_start, key_stop, delta, window, BLOCK_K, WINDOW
        )
        for block in range(first_full, last_full):
            d_query_QD = _query_gradient(
                d_query_QD, query_QD, d_out_QD, lse_Q, sums_Q, keys, values, kv_head, scale,
                key_start + block * BLOCK_K, key_stop, rows_Q, delta, window, BLOCK_K, D, PRECISION, False, WINDOW,
            )  # fmt: skip
        for nth in range(0, blocks - (last_full - first_full)):
            block = nth_masked(nth, first_full, last_full)
            d_query_QD = _query_gradient(
                d_query_QD, query_QD, d_out_QD, lse_Q, sums_Q, keys, values, kv_head, scale,
                key_start + block * BLOCK_K, key_stop, rows_Q, delta, window, BLOCK_K, D, PRECISION, True, WINDOW,
            )  # fmt: skip
    dims_D = tl.arange(0, D)
    offsets_QD = rows_Q.to(tl.int64)[:, None] * (HEADS * D) + head * D + dims_D[None, :]
    d_query_QD = (d_query_QD * softmax_scale).to(d_query_ptr.dtype.element_ty)
    tl.store(d_query_ptr + offsets_QD, d_query_QD, mask=inside_Q[:, None])


@triton.jit
def _key_gradient(
    d_key_KD, d_value_KD, key_KD, value_KD, queries, d_outs, lse_ptr, sums_ptr, head, scale, query_begin, query_stop,
    keys_K, delta, window, BLOCK_Q: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    MASKED: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """(d_key without the softmax scale, d_value) after one block of query rows of one head.

    lse_ptr and sums_ptr point at the head's row. Scores stand transposed, [K, Q], so that both products that follow
    take them as their left operand, from registers.
    """
    query_QD = queries.load([query_begin, head * D])
    d_out_QD = d_outs.load([query_begin, head * D])
    rows_Q = query_begin + tl.arange(0, BLOCK_Q)
    if MASKED:
        # rows behind the visit get weight exp2(-inf) = 0, which spares the tile a second comparison
        lse_Q = tl.load(lse_ptr + rows_Q, mask=rows_Q < query_stop, other=float("inf"))
        sums_Q = tl.load(sums_ptr + rows_Q, mask=rows_Q < query_stop, other=0.0)
    else:
        lse_Q = tl.load(lse_ptr + rows_Q)
        sums_Q = tl.load(sums_ptr + rows_Q)
    scores_KQ = tl.dot(key_KD, query_QD.T, input_precision=PRECISION)
    weights_KQ = tl.exp2(scores_KQ * scale - lse_Q[None, :])
    if MASKED:
        seen_KQ = sees(rows_Q[None, :], keys_K[:, None] + delta, window, WINDOW)
        weights_KQ = tl.where(seen_KQ, weights_KQ, 0.0)
    d_value_KD = tl.dot(weights_KQ.to(d_out_QD.dtype), d_out_QD, d_value_KD, input_precision=PRECISION)
    d_weights_KQ = tl.dot(value_KD, d_out_QD.T, input_precision=PRECISION)
    d_scores_KQ = weights_KQ * (d_weights_KQ - sums_Q[None, :])
    d_key_KD = tl.dot(d_scores_KQ.to(query_QD.dtype), query_QD, d_key_KD, input_precision=PRECISION)
    return d_key_KD, d_value_KD


@triton.jit(do_not_specialize=["num_queries", "window"])
def _key_gradient_kernel(
    queries, keys, values, d_outs, lse_ptr, sums_ptr, d_key_ptr, d_value_ptr, tiles_ptr, visits_ptr, num_queries,
    window, scale, softmax_scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    KV_HEADS: tl.constexpr = HEADS // GROUP
    kv_head = tl.program_id(0) % KV_HEADS
    tile = tl.program_id(0) // KV_HEADS
    row_start = tl.load(tiles_ptr + tile * 4)
    row_stop = tl.load(tiles_ptr + tile * 4 + 1)
    visit_begin = tl.load(tiles_ptr + tile * 4 + 2)
    visit_end = tl.load(tiles_ptr + tile * 4 + 3)
    keys_K = row_start + tl.arange(0, BLOCK_K)
    key_KD = keys.load([row_start, kv_head * D])
    value_KD = values.load([row_start, kv_head * D])
    d_key_KD = tl.zeros([BLOCK_K, D], tl.float32)
    d_value_KD = tl.zeros([BLOCK_K, D], tl.float32)
    visits = visit_end - visit_begin
    for step in range(0, visits * GROUP):
        visit = visit_begin + step % visits
        head = kv_head * GROUP + step // visits
        lse_row_ptr = lse_ptr + head.to(tl.int64) * num_queries
        sums_row_ptr = sums_ptr + head.to(tl.int64) * num_queries
        query_start = tl.load(visits_ptr + visit * 3)
        query_stop = tl.load(visits_ptr + visit * 3 + 1)
        delta = tl.load(visits_ptr + visit * 3 + 2)
        first_full, last_full, blocks = full_query_blocks(
            row_start, row_stop, query_start, query_stop, delta, window, BLOCK_Q, WINDOW
        )
        for block in range(first_full, last_full):
            d_key_KD, d_value_KD = _key_gradient(
                d_key_KD, d_value_KD, key_KD, value_KD, queries, d_outs, lse_row_ptr, sums_row_ptr, head, scale,
                query_start + block * BLOCK_Q, query_stop, keys_K, delta, window, BLOCK_Q, D, PRECISION,
                False, WINDOW,
            )  # fmt: skip
        for nth in range(0, blocks - (last_full - first_full)):
            block = nth_masked(nth, first_full, last_full)
            d_key_KD, d_value_KD = _key_gradient(
                d_key_KD, d_value_KD, key_KD, value_KD, queries, d_outs, lse_row_ptr, sums_row_ptr, head, scale,
                query_start + block * BLOCK_Q, query_stop, keys_K, delta, window, BLOCK_Q, D, PRECISION,
                True, WINDOW,
            )  # fmt: skip
    dims_D = tl.arange(0, D)
    inside_KD = (keys_K < row_stop)[:, None]
    offsets_KD = keys_K.to(tl.int64)[:, None] * (KV_HEADS * D) + kv_head * D + dims_D[None, :]
    tl.store(d_key_ptr + offsets_KD, (d_key_KD * softmax_scale).to(d_key_ptr.dtype.element_ty), mask=inside_KD)
    tl.store(d_value_ptr + offsets_KD, d_value_KD.to(d_value_ptr.dtype.element_ty), mask=inside_KD)
