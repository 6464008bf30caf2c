"""Plain PyTorch on any device: logits in tiles of rows x columns, an online log-sum-exp, recomputed in backward.

Peak extra memory is a few tiles, one column chunk of the head and some [N, D] rows: independent of V. Columns are the
outer loop, so each chunk of the head is read (and, on the CPU, widened to fp32) once per pass and its gradient is
complete, in fp32, before the next chunk starts.

Shape suffixes: N tokens of non-zero weight, D hidden, V this rank's vocabulary rows, B x C one tile.
"""

import torch

from osim_kernels.fused_linear_logprob.products import add_product, logits, operand, spans
from osim_kernels.fused_linear_logprob.rows import on_active_rows
from osim_kernels.fused_linear_logprob.statistics import nothing_seen, over_ranks

# Tile sizes (rows, columns). CPU: the fastest of eight on two EPYC cores at D 256, V 4096. CUDA: 128 MiB of fp32, wide
# enough to fill the device; not measured there yet.
CPU_TILE = (1024, 1024)
CUDA_TILE = (2048, 16384)


def fused_linear_logprob_chunked(
    hidden_TD,
    weight_VD,
    targets_T,
    *,
    weights_T,
    active_rows,
    tensor_parallel_group,
    vocab_start,
    vocab_size,
    temperature,
    logit_softcap,
    with_entropy,
):
    real_rows = min(max(vocab_size - vocab_start, 0), weight_VD.shape[0])  # the rest of the shard is padding

    def compute(hidden_ND, targets_N):
        return _FusedLinearLogprob.apply(
            hidden_ND,
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
        num_rows = hidden_ND.shape[0]
        statistics_4N = nothing_seen(num_rows, hidden_ND)
        maximum_N, sum_N, moment_N, target_N = statistics_4N  # views, updated in place
        operand_ND = operand(hidden_ND)
        row_chunk, column_chunk = CPU_TILE if hidden_ND.device.type == "cpu" else CUDA_TILE
        for columns in spans(real_rows, column_chunk):
            weight_CD = operand(weight_VD[columns])
            for rows in spans(num_rows, row_chunk):
                tile_BC = logits(operand_ND[rows], weight_CD, temperature, softcap)
                index_B, inside_B = _targets_in(targets_N[rows], columns)
                hit_B = tile_BC.gather(1, index_B[:, None])[:, 0]
                target_N[rows] = torch.where(inside_B, hit_B, target_N[rows])
                before_B = maximum_N[rows]
                after_B = torch.maximum(before_B, tile_BC.amax(dim=1))
                decay_B = (before_B - after_B).exp()
                tile_BC.sub_(after_B[:, None])
                if with_entropy:
                    shifted_BC, tile_BC = tile_BC, tile_BC.exp()
                    moment_N[rows] += (before_B - after_B) * sum_N[rows]
                    moment_N[rows] *= decay_B
                    moment_N[rows] += shifted_BC.mul_(tile_BC).sum(dim=1)
                else:
                    tile_BC.exp_()
                sum_N[rows] = sum_N[rows] * decay_B + tile_BC.sum(dim=1)
                maximum_N[rows] = after_B
        if group is not None:
            maximum_N, sum_N, moment_N, target_N = over_ranks(statistics_4N, group)
        log_sum_N = sum_N.log()
        entropy_N = log_sum_N - moment_N / sum_N if with_entropy else None
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, maximum_N, log_sum_N, entropy_N)
        ctx.real_rows, ctx.temperature, ctx.softcap = real_rows, temperature, softcap
        return target_N - maximum_N - log_sum_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_logprob_N, grad_entropy_N):
        hidden_ND, weight_VD, targets_N, maximum_N, log_sum_N, entropy_N = ctx.saved_tensors
        wide = maximum_N.dtype
        num_rows = hidden_ND.shape[0]
        hidden_wanted, weight_wanted = ctx.needs_input_grad[:2]
        grad_hidden_ND = torch.zeros_like(hidden_ND, dtype=wide) if hidden_wanted else None
        grad_weight_VD = torch.zeros_like(weight_VD) if weight_wanted else None
        grad_logprob_N = grad_logprob_N / ctx.temperature
        operand_ND = operand(hidden_ND)
        row_chunk, column_chunk = CPU_TILE if hidden_ND.device.type == "cpu" else CUDA_TILE
        for columns in spans(ctx.real_rows, column_chunk):
            weight_CD = operand(weight_VD[columns])
            grad_weight_CD = torch.zeros_like(weight_CD, dtype=wide) if weight_wanted else None
            for rows in spans(num_rows, row_chunk):
                logprobs_BC = logits(operand_ND[rows], weight_CD, ctx.temperature, ctx.softcap)
                slope_BC = None
                if ctx.softcap is not None:  # d cap * tanh(x / cap) / dx = 1 - tanh^2
                    slope_BC = 1 - (logprobs_BC * (ctx.temperature / ctx.softcap)).square_()
                # two subtractions: maximum + log_sum would lose log_sum to rounding where logits are large
                logprobs_BC.sub_(maximum_N[rows, None]).sub_(log_sum_N[rows, None])
                if entropy_N is None:
                    grad_BC = logprobs_BC.exp_().mul_(-grad_logprob_N[rows, None])
                else:  # d entropy / dz = -p (log p + entropy)
                    probabilities_BC = logprobs_BC.exp()
                    grad_BC = logprobs_BC.add_(entropy_N[rows, None])
                    grad_BC.mul_(grad_entropy_N[rows, None] / -ctx.temperature).sub_(grad_logprob_N[rows, None])
                    grad_BC.mul_(probabilities_BC)
                index_B, inside_B = _targets_in(targets_N[rows], columns)
                grad_BC.scatter_add_(1, index_B[:, None], (grad_logprob_N[rows] * inside_B)[:, None])
                if slope_BC is not None:
                    grad_BC.mul_(slope_BC)
                grad_BC = grad_BC.to(operand_ND.dtype)
                if hidden_wanted:
                    add_product(grad_hidden_ND[rows], grad_BC, weight_CD)
                if weight_wanted:
                    add_product(grad_weight_CD, grad_BC.T, operand_ND[rows])
            if weight_wanted:
                grad_weight_VD[columns] = grad_weight_CD
        if hidden_wanted:
            grad_hidden_ND = grad_hidden_ND.to(hidden_ND.dtype)
        return grad_hidden_ND, grad_weight_VD, None, None, None, None, None, None


def _targets_in(targets_B: torch.Tensor, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """(column of the target inside the tile, whether the target lies in the tile)."""
    index_B = targets_B - columns.start
    inside_B = (index_B >= 0) & (index_B < columns.stop - columns.start)
    return index_B.where(inside_B, 0), inside_B
