"""One tile of logits on the GPU: the device functions that the fused linear kernels share.

Operands arrive as host tensor descriptors (TMA): rows, columns and depth beyond their edges read as 0, so a caller
masks columns past the vocabulary and nothing else. Shape suffixes: N tokens, C vocabulary columns of one tile.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from osim_kernels.fused_linear_logprob import TMA_BYTES


def row_descriptor(x: torch.Tensor, block_rows: int, block_depth: int) -> TensorDescriptor:
    """TMA view of a row-major matrix in blocks. ValueError where the hardware cannot address it."""
    if x.stride(1) != 1 or x.stride(0) * x.element_size() % TMA_BYTES:
        raise ValueError(f"TMA needs rows of whole {TMA_BYTES}-byte units, contiguous; strides are {x.stride()}")
    return TensorDescriptor.from_tensor(x, [block_rows, block_depth])


@triton.jit
def logit_tile(
    hidden,
    head,
    row,
    column,
    hidden_size,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """fp32 [BLOCK_N, BLOCK_C]: hidden[row:, :] @ head[column:, :].T, accumulated over the whole depth."""
    logits_NC = tl.zeros((BLOCK_N, BLOCK_C), dtype=tl.float32)
    for depth in tl.range(0, hidden_size, BLOCK_D):
        hidden_ND = hidden.load([row, depth])
        head_CD = head.load([column, depth])
        logits_NC = tl.dot(hidden_ND, head_CD.T, logits_NC, input_precision=PRECISION)
    return logits_NC


@triton.jit
def tanh(x):
    """Through the logistic function: absolute error below 4e-7, saturates without overflow."""
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def scaled(logits_NC, inverse_temperature, softcap, HAS_SOFTCAP: tl.constexpr):
    """softcap * tanh(logits / softcap), if capped, then divided by the temperature."""
    if HAS_SOFTCAP:
        logits_NC = softcap * tanh(logits_NC / softcap)
    return logits_NC * inverse_temperature


@triton.jit
def grouped(program, row_tiles, column_parts, GROUP: tl.constexpr):
    """(row tile, column part) of a program. GROUP row tiles share their columns while these are in L2."""
    per_group = GROUP * column_parts
    first = program // per_group * GROUP
    height = min(row_tiles - first, GROUP)
    inside = program % per_group
    return first + inside % height, inside // height
