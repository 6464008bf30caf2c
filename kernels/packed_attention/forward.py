"""Forward kernel: one program per query tile and head, online softmax over the pieces of the tile.

FlashAttention-2 (Dao 2023, arXiv 2307.08691, algorithm 1) over a tile plan instead of a dense grid. Scores are in
units of log2, so that exp2 serves; queries, keys and values arrive through TMA descriptors [rows, heads * D].

Shape suffixes: Q rows of the query tile, K keys of a block, D head dimension.
"""

import triton
import triton.language as tl

from osim_kernels.packed_attention.blocks import NEVER, full_key_blocks, nth_masked, sees


@triton.jit
def _attend(
    out_QD, sum_Q, max_Q, query_QD, keys, values, kv_head, scale, key_begin, key_stop, rows_Q, delta, window,
    BLOCK_K: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Accumulators after one block of keys."""
    key_KD = keys.load([key_begin, kv_head * D])
    value_KD = values.load([key_begin, kv_head * D])
    scores_QK = tl.dot(query_QD, key_KD.T, input_precision=PRECISION)
    if MASKED:
        keys_K = key_begin + tl.arange(0, BLOCK_K)
        positions_K = tl.where(keys_K < key_stop, keys_K + delta, NEVER)
        seen_QK = sees(rows_Q[:, None], positions_K[None, :], window, WINDOW)
        scores_QK = tl.where(seen_QK, scores_QK, float("-inf"))
    new_max_Q = tl.maximum(max_Q, tl.max(scores_QK, 1) * scale)
    base_Q = new_max_Q
    if MASKED:  # a row that has seen nothing yet keeps its maximum at -inf, and -inf - -inf is NaN
        base_Q = tl.where(new_max_Q == float("-inf"), 0.0, new_max_Q)
    weights_QK = tl.exp2(scores_QK * scale - base_Q[:, None])
    shrink_Q = tl.exp2(max_Q - base_Q)
    sum_Q = sum_Q * shrink_Q + tl.sum(weights_QK, 1)
    out_QD = out_QD * shrink_Q[:, None]
    out_QD = tl.dot(weights_QK.to(value_KD.dtype), value_KD, out_QD, input_precision=PRECISION)
    return out_QD, sum_Q, new_max_Q


@triton.jit(do_not_specialize=["num_queries", "window"])
def _forward_kernel(
    queries, keys, values, out_ptr, lse_ptr, tiles_ptr, pieces_ptr, num_queries, window, scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    # heads vary fastest: the heads that share keys run side by side, and long tiles still start first
    head = tl.program_id(0) % HEADS
    tile = tl.program_id(0) // HEADS
    kv_head = head // GROUP
    row_start = tl.load(tiles_ptr + tile * 4)
    row_stop = tl.load(tiles_ptr + tile * 4 + 1)
    piece_begin = tl.load(tiles_ptr + tile * 4 + 2)
    piece_end = tl.load(tiles_ptr + tile * 4 + 3)
    rows_Q = row_start + tl.arange(0, BLOCK_Q)
    query_QD = queries.load([row_start, head * D])
    out_QD = tl.zeros([BLOCK_Q, D], tl.float32)
    sum_Q = tl.zeros([BLOCK_Q], tl.float32)
    max_Q = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    for piece in range(piece_begin, piece_end):
        key_start = tl.load(pieces_ptr + piece * 3)
        key_stop = tl.load(pieces_ptr + piece * 3 + 1)
        delta = tl.load(pieces_ptr + piece * 3 + 2)
        first_full, last_full, blocks = full_key_blocks(
            row_start, row_stop, key_start, key_stop, delta, window, BLOCK_K, WINDOW
        )
        for block in range(first_full, last_full):
            out_QD, sum_Q, max_Q = _attend(
                out_QD, sum_Q, max_Q, query_QD, keys, values, kv_head, scale, key_start + block * BLOCK_K, key_stop,
                rows_Q, delta, window, BLOCK_K, D, PRECISION, False, WINDOW,
            )  # fmt: skip
        for nth in range(0, blocks - (last_full - first_full)):
            block = nth_masked(nth, first_full, last_full)
            out_QD, sum_Q, max_Q = _attend(
                out_QD, sum_Q, max_Q, query_QD, keys, values, kv_head, scale, key_start + block * BLOCK_K, key_stop,
                rows_Q, delta, window, BLOCK_K, D, PRECISION, True, WINDOW,
            )  # fmt: skip

    blind_Q = sum_Q == 0.0
    out_QD = out_QD / tl.where(blind_Q, 1.0, sum_Q)[:, None]
    lse_Q = tl.where(blind_Q, float("-inf"), max_Q + tl.log2(tl.where(blind_Q, 1.0, sum_Q)))
    inside_Q = rows_Q < row_stop
    dims_D = tl.arange(0, D)
    offsets_QD = rows_Q.to(tl.int64)[:, None] * (HEADS * D) + head * D + dims_D[None, :]
    tl.store(out_ptr + offsets_QD, out_QD.to(out_ptr.dtype.element_ty), mask=inside_Q[:, None])
    tl.store(lse_ptr + head.to(tl.int64) * num_queries + rows_Q, lse_Q, mask=inside_Q)
