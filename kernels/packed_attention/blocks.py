"""What forward and backward kernels share: where the unmasked blocks of a piece lie, and the mask of the others.

A piece (or visit) is cut into blocks from its start. Those that every row of the tile sees whole form one run
[first_full, last_full) of block numbers; only the others pay for a mask.
"""

import triton
import triton.language as tl

NEVER = tl.constexpr(2**30)  # a key position behind every query


@triton.jit
def full_key_blocks(
    row_start, row_stop, key_start, key_stop, delta, window, BLOCK_K: tl.constexpr, WINDOW: tl.constexpr
):
    """(first_full, last_full, blocks) of a piece: key blocks that each of the rows [row_start, row_stop) sees whole."""
    blocks = tl.cdiv(key_stop - key_start, BLOCK_K)
    last_full = tl.maximum(tl.minimum(key_stop, row_start - delta + 1) - key_start, 0) // BLOCK_K
    first_full = 0
    if WINDOW:
        first_full = tl.cdiv(tl.maximum(row_stop - delta - window - key_start, 0), BLOCK_K)
        first_full = tl.minimum(first_full, last_full)
    return first_full, last_full, blocks


@triton.jit
def full_query_blocks(
    row_start, row_stop, query_start, query_stop, delta, window, BLOCK_Q: tl.constexpr, WINDOW: tl.constexpr
):
    """(first_full, last_full, blocks) of a visit: query blocks whose rows all see each key of [row_start, row_stop)."""
    blocks = tl.cdiv(query_stop - query_start, BLOCK_Q)
    stop = query_stop
    if WINDOW:
        stop = tl.minimum(query_stop, row_start + delta + window)
    last_full = tl.maximum(stop - query_start, 0) // BLOCK_Q
    first_full = tl.cdiv(tl.maximum(row_stop - 1 + delta - query_start, 0), BLOCK_Q)
    return tl.minimum(first_full, last_full), last_full, blocks


@triton.jit
def nth_masked(nth, first_full, last_full):
    """Number of the nth block outside [first_full, last_full)."""
    return tl.where(nth < first_full, nth, nth + last_full - first_full)


@triton.jit
def sees(query_rows, key_positions, window, WINDOW: tl.constexpr):
    """Whether query rows see keys at these positions (row + delta); the arguments broadcast.

    Keys behind a piece stand at NEVER, so that a tile needs no second comparison.
    """
    distance = query_rows - key_positions
    seen = distance >= 0
    if WINDOW:
        seen = seen & (distance < window)
    return seen
