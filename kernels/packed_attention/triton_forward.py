"""Forward of packed attention on Hopper: one program per (query head, query tile) of the tile plan.

The plan's tiles come longest first and the heads of a tile side by side, so that no multiprocessor is left with a
long document at the end and the heads of one group find their keys in L2. Blocks of keys that every row of the tile
sees skip the mask; online softmax in base 2 (Dao et al., arXiv 2205.14135, algorithm 1).

Shape suffixes: T query rows, S key rows, H query heads, G key/value heads, D head dimension, Q x K one block.
"""

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


@triton.jit
def load_rows(rows, start, head, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """[BLOCK, BLOCK_D] of one head, from row `start`; rows and columns outside the tensor are 0."""
    return rows.load([start, head, 0]).reshape(BLOCK, BLOCK_D)


@triton.jit
def _softmax_blocks(
    acc_QD,
    maximum_Q,
    sum_Q,
    query_QD,
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
    """Online softmax over the blocks of keys that start at first, first + BLOCK_K, ... below last."""
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
        highest_Q = tl.maximum(maximum_Q, tl.max(scores_QK, 1))
        # a row that has seen nothing yet: -inf - -inf would be NaN
        base_Q = tl.where(highest_Q == float("-inf"), 0.0, highest_Q) if MASKED else highest_Q
        weights_QK = tl.exp2(scores_QK - base_Q[:, None])
        decay_Q = tl.exp2(maximum_Q - base_Q)
        sum_Q = sum_Q * decay_Q + tl.sum(weights_QK, 1)
        acc_QD = acc_QD * decay_Q[:, None]
        value_KD = load_rows(values, start, head, BLOCK_K, BLOCK_D)
        acc_QD = tl.dot(weights_QK.to(value_KD.dtype), value_KD, acc_QD, input_precision=PRECISION)
        maximum_Q = highest_Q
    return acc_QD, maximum_Q, sum_Q


@triton.jit(do_not_specialize=["num_queries", "window"])
def forward_kernel(
    queries,
    keys,
    values,
    out_THD,
    lse_HT,
    query_tiles,
    pieces,
    num_queries,
    window,
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
    """queries, keys, values: tensor descriptors over [rows, heads, D] with blocks [BLOCK, 1, BLOCK_D].

    lse_HT holds log2 of the sums of exp2(scores), or +inf for a row that sees nothing: in backward that makes each
    of its weights exp2(score - inf) = 0.
    """
    head, tile = tl.program_id(0), query_tiles + 4 * tl.program_id(1)
    row_start, row_stop = tl.load(tile), tl.load(tile + 1)
    if row_start >= row_stop:
        return
    rows_Q = row_start + tl.arange(0, BLOCK_Q)
    query_QD = load_rows(queries, row_start, head, BLOCK_Q, BLOCK_D)
    acc_QD = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    maximum_Q = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    sum_Q = tl.zeros([BLOCK_Q], tl.float32)
    for piece in range(tl.load(tile + 2), tl.load(tile + 3)):
        key_start = tl.load(pieces + 3 * piece)
        key_stop = tl.load(pieces + 3 * piece + 1)
        delta = tl.load(pieces + 3 * piece + 2)
        masked_from = key_start
        if not WINDOWED:  # whole blocks that even the tile's first row sees
            seen_by_all = tl.minimum(row_start - delta + 1, key_stop) - key_start
            masked_from += tl.maximum(seen_by_all, 0) // BLOCK_K * BLOCK_K
            acc_QD, maximum_Q, sum_Q = _softmax_blocks(
                acc_QD, maximum_Q, sum_Q, query_QD, keys, values, head // GROUP, rows_Q, key_start, masked_from,
                key_stop, delta, window, scale_log2, False, WINDOWED, BLOCK_K, BLOCK_D, PRECISION, STAGES,
            )  # fmt: skip
        acc_QD, maximum_Q, sum_Q = _softmax_blocks(
            acc_QD, maximum_Q, sum_Q, query_QD, keys, values, head // GROUP, rows_Q, masked_from, key_stop,
            key_stop, delta, window, scale_log2, True, WINDOWED, BLOCK_K, BLOCK_D, PRECISION, STAGES,
        )  # fmt: skip
    blind_Q = sum_Q == 0
    lse_Q = tl.where(blind_Q, float("inf"), maximum_Q + tl.log2(tl.where(blind_Q, 1.0, sum_Q)))
    out_QD = acc_QD / tl.where(blind_Q, 1.0, sum_Q)[:, None]
    inside_Q = rows_Q < row_stop
    tl.store(lse_HT + head.to(tl.int64) * num_queries + rows_Q, lse_Q, mask=inside_Q)
    store_rows(out_THD, out_QD, rows_Q, inside_Q, head, HEADS, HEAD_DIM, BLOCK_D)


@triton.jit
def store_rows(
    out, value_ND, rows_N, inside_N, head, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Store [N, BLOCK_D] at some rows of a contiguous [rows, HEADS, HEAD_DIM]."""
    columns_D = tl.arange(0, BLOCK_D)
    offsets_ND = (rows_N.to(tl.int64)[:, None] * HEADS + head) * HEAD_DIM + columns_D[None, :]
    inside_ND = inside_N[:, None] & (columns_D < HEAD_DIM)[None, :]
    tl.store(out + offsets_ND, value_ND.to(out.dtype.element_ty), mask=inside_ND)
