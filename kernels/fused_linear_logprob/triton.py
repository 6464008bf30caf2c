"""Triton for Hopper: logits live in registers, one tile at a time, and only per-row statistics leave the chip.

Forward: every program walks the vocabulary blocks of one part for one tile of tokens and writes four statistics a
row; the parts are merged, and over ranks gathered. Backward: a kernel recomputes the logits of one chunk (rows x
columns) and writes their gradient, in the operands' dtype, into a workspace of bounded size; two cuBLAS products
turn it into the gradients of hidden states and head. No atomics and a fixed order: equal bits in every run.

Shape suffixes: N tokens of non-zero weight, D hidden, V this rank's vocabulary rows, P parts of the vocabulary,
R x C one chunk.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from osim_kernels.fused_linear_logprob import TMA_BYTES
from osim_kernels.fused_linear_logprob.products import add_product, operand, product, spans
from osim_kernels.fused_linear_logprob.rows import on_active_rows
from osim_kernels.fused_linear_logprob.statistics import LOWEST, merged, nothing_seen, over_ranks
from osim_kernels.fused_linear_logprob.tile import grouped, logit_tile, row_descriptor, scaled, tanh

PROGRAMS = 1056  # forward programs aimed at: eight rounds of 132 SMs
FEWEST_PARTS = 8  # and GROUP token tiles run side by side, so that 8 x GROUP tiles share one pass over both operands
GROUP = 16
CHUNK_ROWS, CHUNK_COLUMNS = 16384, 8192  # 256 MiB of bf16

LOWEST_LOGIT = tl.constexpr(LOWEST)


@dataclass(frozen=True)
class Config:
    """One static configuration: tile of tokens x columns x depth, warps and pipeline stages."""

    tokens: int
    columns: int
    depth: int
    warps: int
    stages: int

    @property
    def name(self) -> str:
        return f"{self.tokens}x{self.columns}x{self.depth} w{self.warps} s{self.stages}"


# Chosen by the compile audit (no spills, tile size, occupancy), not by timing; fixed tables, because a configuration
# picked by timing could differ after a resume and change bits. FORWARD goes by element size; BACKWARD by element size
# and soft cap, which needs a second tile in registers.
FORWARD = {2: Config(128, 256, 64, 8, 4), 4: Config(64, 64, 16, 4, 3)}
BACKWARD = {
    (2, False): Config(128, 256, 64, 8, 4),
    (2, True): Config(128, 128, 64, 8, 4),
    (4, False): Config(64, 64, 16, 4, 3),
    (4, True): Config(64, 64, 16, 4, 3),
}
# What `python -m benchmarks kernels fused_linear_logprob --tune` times on a GPU, by element size.
CANDIDATES = {
    2: [Config(128, 256, 64, 8, 3), Config(128, 256, 64, 8, 4), Config(128, 128, 64, 8, 3), Config(64, 256, 64, 4, 4)],
    4: [Config(64, 64, 16, 4, 3), Config(32, 64, 16, 4, 3), Config(64, 64, 32, 8, 3)],
}


def fused_linear_logprob_triton(
    hidden_TD,
    weight_VD,
    targets_T,
    *,
    weights_T=None,
    active_rows=None,
    tensor_parallel_group=None,
    vocab_start=0,
    vocab_size,
    temperature=1.0,
    logit_softcap=None,
    with_entropy=False,
):
    """The op of __init__.py; bf16, fp16 or fp32, rows of a multiple of 16 bytes."""
    real_rows = min(max(vocab_size - vocab_start, 0), weight_VD.shape[0])  # the rest of the shard is padding

    def compute(hidden_ND, targets_N):
        return _FusedLinearLogprob.apply(
            hidden_ND.contiguous(),
            weight_VD,
            targets_N - vocab_start,
            real_rows,
            tensor_parallel_group,
            temperature,
            logit_softcap,
            with_entropy,
        )

    return on_active_rows(compute, hidden_TD, targets_T, weights_T, active_rows, vocab_size)


class _FusedLinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, real_rows, group, temperature, softcap, with_entropy):
        statistics_4N = local_statistics(
            hidden_ND, weight_VD[:real_rows], targets_N, temperature, softcap, with_entropy
        )
        if group is not None:
            statistics_4N = over_ranks(statistics_4N, group)
        maximum_N, sum_N, moment_N, target_N = statistics_4N.unbind(0)
        log_sum_N = sum_N.log()
        entropy_N = log_sum_N - moment_N / sum_N if with_entropy else None
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, maximum_N, log_sum_N, entropy_N)
        ctx.real_rows, ctx.temperature, ctx.softcap = real_rows, temperature, softcap
        return target_N - maximum_N - log_sum_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_logprob_N, grad_entropy_N):
        hidden_ND, weight_VD, *rows, entropy_N = ctx.saved_tensors
        hidden_wanted, weight_wanted = ctx.needs_input_grad[:2]
        grad_hidden_ND = torch.zeros_like(hidden_ND, dtype=torch.float32) if hidden_wanted else None
        grad_weight_VD = torch.zeros_like(weight_VD) if weight_wanted else None
        chunk_rows, chunk_columns = chunk_shape(hidden_ND.shape[0], ctx.real_rows, hidden_ND.dtype)
        workspace_RC = hidden_ND.new_empty(chunk_rows, chunk_columns)
        rows += [grad_logprob_N, entropy_N, grad_entropy_N]
        for columns in spans(ctx.real_rows, chunk_columns):
            grad_weight_CD = None
            for span in spans(hidden_ND.shape[0], chunk_rows):
                dlogits_RC = workspace_RC[: span.stop - span.start, : columns.stop - columns.start]
                launch_dlogits(
                    dlogits_RC,
                    hidden_ND[span],
                    weight_VD[columns],
                    columns.start,
                    [row if row is None else row[span] for row in rows],
                    ctx.temperature,
                    ctx.softcap,
                )
                left_RC = operand(dlogits_RC)
                if hidden_wanted:
                    add_product(grad_hidden_ND[span], left_RC, operand(weight_VD[columns]))
                if weight_wanted and grad_weight_CD is None:
                    grad_weight_CD = product(left_RC.T, operand(hidden_ND[span]))
                elif weight_wanted:
                    add_product(grad_weight_CD, left_RC.T, operand(hidden_ND[span]))
            if grad_weight_CD is not None:
                grad_weight_VD[columns] = grad_weight_CD
        if hidden_wanted:
            grad_hidden_ND = grad_hidden_ND.to(hidden_ND.dtype)
        return grad_hidden_ND, grad_weight_VD, None, None, None, None, None, None


def local_statistics(hidden_ND, head_VD, targets_N, temperature, softcap, with_entropy, config=None) -> torch.Tensor:
    """[4, N] fp32 statistics of this rank's rows of the head (see statistics.py); `targets_N` count from its first."""
    num_rows, num_columns = hidden_ND.shape[0], head_VD.shape[0]
    if num_rows == 0 or num_columns == 0:
        return nothing_seen(num_rows, hidden_ND)
    config = config or FORWARD[hidden_ND.element_size()]
    parts, blocks_per_part = _parts(num_rows, num_columns, config)
    parts_P4N = hidden_ND.new_empty(parts, 4, num_rows, dtype=torch.float32)
    _statistics_kernel[triton.cdiv(num_rows, config.tokens) * parts,](
        row_descriptor(hidden_ND, config.tokens, config.depth),
        row_descriptor(head_VD, config.columns, config.depth),
        targets_N,
        parts_P4N,
        num_rows,
        num_columns,
        hidden_ND.shape[1],
        parts,
        blocks_per_part,
        1.0 / temperature,
        softcap or 0.0,
        HAS_SOFTCAP=softcap is not None,
        WITH_ENTROPY=with_entropy,
        GROUP=GROUP,
        BLOCK_N=config.tokens,
        BLOCK_C=config.columns,
        BLOCK_D=config.depth,
        PRECISION=_precision(hidden_ND.dtype),
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return merged(parts_P4N)


def launch_dlogits(dlogits_RC, hidden_RD, head_CD, first_column, rows, temperature, softcap, config=None) -> None:
    """Fill dlogits_RC with the logits' gradient. `rows` are target, maximum, log_sum, grad_logprob, entropy or None
    and grad_entropy or None, [R] each; targets count from the shard's first column, as `first_column` does."""
    config = config or BACKWARD[hidden_RD.element_size(), softcap is not None]
    num_rows, num_columns = dlogits_RC.shape
    targets_R, maximum_R, log_sum_R, grad_logprob_R, entropy_R, grad_entropy_R = rows
    row_tiles, column_tiles = triton.cdiv(num_rows, config.tokens), triton.cdiv(num_columns, config.columns)
    _dlogits_kernel[row_tiles * column_tiles,](
        row_descriptor(hidden_RD, config.tokens, config.depth),
        row_descriptor(head_CD, config.columns, config.depth),
        row_descriptor(dlogits_RC, config.tokens, config.columns),
        targets_R,
        maximum_R,
        log_sum_R,
        grad_logprob_R.contiguous(),
        entropy_R,
        grad_entropy_R if entropy_R is None else grad_entropy_R.contiguous(),
        first_column,
        num_rows,
        hidden_RD.shape[1],
        column_tiles,
        1.0 / temperature,
        softcap or 0.0,
        HAS_SOFTCAP=softcap is not None,
        GROUP=GROUP,
        BLOCK_N=config.tokens,
        BLOCK_C=config.columns,
        BLOCK_D=config.depth,
        PRECISION=_precision(hidden_RD.dtype),
        num_warps=config.warps,
        num_stages=config.stages,
    )


@triton.jit(do_not_specialize=["num_rows", "num_parts", "blocks_per_part"])
def _statistics_kernel(
    hidden,
    head,
    targets_ptr,
    parts_ptr,
    num_rows,
    num_columns,
    hidden_size,
    num_parts,
    blocks_per_part,
    inverse_temperature,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    WITH_ENTROPY: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile, part = grouped(tl.program_id(0), tl.cdiv(num_rows, BLOCK_N), num_parts, GROUP)
    row_N = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_N = row_N < num_rows
    target_N = tl.load(targets_ptr + row_N, mask=inside_N, other=-1).to(tl.int32)
    maximum_N = tl.full((BLOCK_N,), LOWEST_LOGIT, tl.float32)
    sum_N = tl.zeros((BLOCK_N,), tl.float32)
    moment_N = tl.zeros((BLOCK_N,), tl.float32)
    hit_N = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    last = min((part + 1) * blocks_per_part, tl.cdiv(num_columns, BLOCK_C))
    for block in range(part * blocks_per_part, last):
        logits_NC = logit_tile(
            hidden, head, tile * BLOCK_N, block * BLOCK_C, hidden_size, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION
        )
        logits_NC = scaled(logits_NC, inverse_temperature, softcap, HAS_SOFTCAP)
        column_C = block * BLOCK_C + tl.arange(0, BLOCK_C)
        logits_NC = tl.where((column_C < num_columns)[None, :], logits_NC, LOWEST_LOGIT)
        is_target_NC = column_C[None, :] == target_N[:, None]
        hit_N = tl.maximum(hit_N, tl.max(tl.where(is_target_NC, logits_NC, float("-inf")), axis=1))
        after_N = tl.maximum(maximum_N, tl.max(logits_NC, axis=1))
        decay_N = tl.exp(maximum_N - after_N)
        shifted_NC = logits_NC - after_N[:, None]
        exponential_NC = tl.exp(shifted_NC)
        if WITH_ENTROPY:
            moment_N = decay_N * (moment_N + (maximum_N - after_N) * sum_N)
            moment_N += tl.sum(exponential_NC * shifted_NC, axis=1)
        sum_N = sum_N * decay_N + tl.sum(exponential_NC, axis=1)
        maximum_N = after_N
    out_N = parts_ptr + part.to(tl.int64) * 4 * num_rows + row_N
    tl.store(out_N, maximum_N, mask=inside_N)
    tl.store(out_N + num_rows, sum_N, mask=inside_N)
    tl.store(out_N + 2 * num_rows, moment_N, mask=inside_N)
    tl.store(out_N + 3 * num_rows, hit_N, mask=inside_N)


@triton.jit(do_not_specialize=["first_column", "num_rows", "num_column_tiles"])
def _dlogits_kernel(
    hidden,
    head,
    dlogits,
    targets_ptr,
    maximum_ptr,
    log_sum_ptr,
    grad_logprob_ptr,
    entropy_ptr,
    grad_entropy_ptr,
    first_column,
    num_rows,
    hidden_size,
    num_column_tiles,
    inverse_temperature,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile, part = grouped(tl.program_id(0), tl.cdiv(num_rows, BLOCK_N), num_column_tiles, GROUP)
    logits_NC = logit_tile(
        hidden, head, tile * BLOCK_N, part * BLOCK_C, hidden_size, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION
    )
    row_N = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_N = row_N < num_rows
    target_N = tl.load(targets_ptr + row_N, mask=inside_N, other=-1).to(tl.int32)
    maximum_N = tl.load(maximum_ptr + row_N, mask=inside_N, other=0.0)
    log_sum_N = tl.load(log_sum_ptr + row_N, mask=inside_N, other=0.0)
    grad_logprob_N = tl.load(grad_logprob_ptr + row_N, mask=inside_N, other=0.0)
    scale = inverse_temperature
    slope_NC = scale
    if HAS_SOFTCAP:
        tanh_NC = tanh(logits_NC / softcap)
        slope_NC = scale * (1 - tanh_NC * tanh_NC)
        logits_NC = softcap * tanh_NC
    # two subtractions: maximum + log_sum would lose log_sum to rounding where logits are large
    logprob_NC = logits_NC * inverse_temperature - maximum_N[:, None] - log_sum_N[:, None]
    weight_NC = grad_logprob_N[:, None]
    if entropy_ptr is not None:  # d entropy / dz = -p (log p + entropy)
        entropy_N = tl.load(entropy_ptr + row_N, mask=inside_N, other=0.0)
        grad_entropy_N = tl.load(grad_entropy_ptr + row_N, mask=inside_N, other=0.0)
        weight_NC += grad_entropy_N[:, None] * (logprob_NC + entropy_N[:, None])
    column_C = first_column + part * BLOCK_C + tl.arange(0, BLOCK_C)
    is_target_NC = column_C[None, :] == target_N[:, None]
    grad_NC = tl.where(is_target_NC, grad_logprob_N[:, None], 0.0) - tl.exp(logprob_NC) * weight_NC
    dlogits.store([tile * BLOCK_N, part * BLOCK_C], (grad_NC * slope_NC).to(dlogits.dtype))


def _parts(num_rows: int, num_columns: int, config: Config) -> tuple[int, int]:
    """(parts of the vocabulary, blocks in each): enough programs to fill the device, and a few parts in any case."""
    blocks = triton.cdiv(num_columns, config.columns)
    wanted = max(FEWEST_PARTS, triton.cdiv(PROGRAMS, triton.cdiv(num_rows, config.tokens)))
    blocks_per_part = triton.cdiv(blocks, min(wanted, blocks))
    return triton.cdiv(blocks, blocks_per_part), blocks_per_part


def chunk_shape(num_rows: int, vocab_rows: int, dtype: torch.dtype) -> tuple[int, int]:
    """(rows, columns) of the backward workspace: at most CHUNK_ROWS x CHUNK_COLUMNS elements of 16 bits."""
    unit = TMA_BYTES // dtype.itemsize  # rows of the workspace are whole units of what TMA addresses
    columns = min(CHUNK_COLUMNS * 2 // dtype.itemsize, -(-vocab_rows // unit) * unit)
    return max(1, min(num_rows, CHUNK_ROWS)), max(unit, columns)


def workspace_bytes(num_rows: int, vocab_rows: int, hidden_size: int, dtype: torch.dtype) -> dict[str, int]:
    """Peak bytes of each pass for N active rows, beside inputs, outputs and the head's gradient, on a GPU.

    Grows with `vocab_rows` only until the vocabulary fills one chunk of columns and, in the forward pass, until there
    are as many vocabulary blocks as parts.
    """
    parts, _ = _parts(num_rows, vocab_rows, FORWARD[dtype.itemsize])
    rows, columns = chunk_shape(num_rows, vocab_rows, dtype)
    narrow = dtype.itemsize < 4  # the products' fp32 results are then added, not accumulated in place
    head_copies = 1 + (narrow and num_rows > rows)
    return {
        # the parts' statistics, four intermediates of a quarter each while they merge, and rows of [N]
        "forward": 4 * num_rows * (parts * (4 + 4) + 8),
        # the chunk; hidden gradient in fp32 and one product; the chunk's head gradient in fp32; and [N]: four
        # statistics, log-sum, entropy, log-prob, 64-bit targets and the gradients that flow in
        "backward": rows * columns * dtype.itemsize
        + 4 * hidden_size * (num_rows + narrow * rows + head_copies * columns)
        + 4 * 12 * num_rows,
    }


def _precision(dtype: torch.dtype) -> str | None:
    return "ieee" if dtype == torch.float32 else None  # 16-bit operands have only one precision
