"""Plain PyTorch on any device: logits in tiles of rows x columns, an online log-sum-exp, recomputed in backward.

Peak extra memory is a few tiles, one column chunk of the head and some [N, D] rows: independent of V. Columns are the
outer loop, so each chunk of the head is read (and, on the CPU, widened to fp32) once per pass and its gradient is
complete, in fp32, before the next chunk starts.

Shape suffixes: N tokens of non-zero weight, D hidden, V this rank's vocabulary rows, B x C one tile, W ranks.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist

# Tile sizes (rows, columns). CPU: the fastest of eight on two EPYC cores at D 256, V 4096. CUDA: 128 MiB of fp32, wide
# enough to fill the device; not measured there yet.
CPU_TILE = (1024, 1024)
CUDA_TILE = (2048, 16384)
LOWEST = -1e30  # below any logit, yet finite: (LOWEST - maximum) * 0 must be 0 and not NaN


def fused_linear_logprob_chunked(
    hidden_TD, weight_VD, targets_T, *, weights_T, tensor_parallel_group, vocab_start, vocab_size, **options
):
    num_tokens = hidden_TD.shape[0]
    rows_N = None if weights_T is None else weights_T.nonzero()[:, 0]
    if rows_N is not None and rows_N.numel() == num_tokens:
        rows_N = None
    hidden_ND, targets_N = hidden_TD, targets_T
    if rows_N is not None:
        hidden_ND, targets_N = hidden_TD.index_select(0, rows_N), targets_T.index_select(0, rows_N)
    if targets_N.device.type == "cpu" and targets_N.numel():
        low, high = targets_N.aminmax()
        if low < 0 or high >= vocab_size:
            raise ValueError(f"target ids {int(low)}..{int(high)} leave the vocabulary of {vocab_size} tokens")
    real_rows = min(max(vocab_size - vocab_start, 0), weight_VD.shape[0])  # the rest of the shard is padding
    logprob_N, entropy_N = _FusedLinearLogprob.apply(
        hidden_ND,
        weight_VD,
        targets_N - vocab_start,
        real_rows,
        tensor_parallel_group,
        options["temperature"],
        options["logit_softcap"],
        options["with_entropy"],
    )
    if rows_N is not None:
        logprob_N = logprob_N.new_zeros(num_tokens).index_copy(0, rows_N, logprob_N)
        if entropy_N is not None:
            entropy_N = entropy_N.new_zeros(num_tokens).index_copy(0, rows_N, entropy_N)
    return logprob_N, entropy_N


class _FusedLinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, real_rows, group, temperature, softcap, with_entropy):
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        num_rows = hidden_ND.shape[0]
        maximum_N = torch.full((num_rows,), LOWEST, dtype=wide, device=hidden_ND.device)
        sum_N = torch.zeros_like(maximum_N)  # of exp(z - maximum)
        moment_N = torch.zeros_like(maximum_N)  # of exp(z - maximum) * (z - maximum), for the entropy
        target_N = torch.full_like(maximum_N, -torch.inf)
        operand_ND = _operand(hidden_ND)
        row_chunk, column_chunk = CPU_TILE if hidden_ND.device.type == "cpu" else CUDA_TILE
        for columns in _spans(real_rows, column_chunk):
            weight_CD = _operand(weight_VD[columns])
            for rows in _spans(num_rows, row_chunk):
                tile_BC = _logits(operand_ND[rows], weight_CD, temperature, softcap)
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
            maximum_N, sum_N, moment_N, target_N = _over_ranks(maximum_N, sum_N, moment_N, target_N, group)
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
        operand_ND = _operand(hidden_ND)
        row_chunk, column_chunk = CPU_TILE if hidden_ND.device.type == "cpu" else CUDA_TILE
        for columns in _spans(ctx.real_rows, column_chunk):
            weight_CD = _operand(weight_VD[columns])
            grad_weight_CD = torch.zeros_like(weight_CD, dtype=wide) if weight_wanted else None
            for rows in _spans(num_rows, row_chunk):
                logprobs_BC = _logits(operand_ND[rows], weight_CD, ctx.temperature, ctx.softcap)
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
                    _add_product(grad_hidden_ND[rows], grad_BC, weight_CD)
                if weight_wanted:
                    _add_product(grad_weight_CD, grad_BC.T, operand_ND[rows])
            if weight_wanted:
                grad_weight_VD[columns] = grad_weight_CD
        if hidden_wanted:
            grad_hidden_ND = grad_hidden_ND.to(hidden_ND.dtype)
        return grad_hidden_ND, grad_weight_VD, None, None, None, None, None, None


def _spans(length: int, chunk: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk, length)) for start in range(0, length, chunk))


def _operand(x: torch.Tensor) -> torch.Tensor:
    """CUDA multiplies bf16 and fp16 with fp32 accumulation and output; the CPU would round its output, so widen."""
    return x if x.device.type == "cuda" else x.to(torch.promote_types(x.dtype, torch.float32))


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right with an output of at least fp32."""
    if left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(_product(left, right))


def _logits(hidden_BD, weight_CD, temperature: float, softcap: float | None) -> torch.Tensor:
    """One tile, soft-capped and then divided by the temperature."""
    tile_BC = _product(hidden_BD, weight_CD.T)
    if softcap is not None:
        tile_BC.div_(softcap).tanh_().mul_(softcap)
    return tile_BC if temperature == 1.0 else tile_BC.div_(temperature)


def _targets_in(targets_B: torch.Tensor, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """(column of the target inside the tile, whether the target lies in the tile)."""
    index_B = targets_B - columns.start
    inside_B = (index_B >= 0) & (index_B < columns.stop - columns.start)
    return index_B.where(inside_B, 0), inside_B


def _over_ranks(maximum_N, sum_N, moment_N, target_N, group):
    """Each rank's statistics as statistics of the whole vocabulary, in one all-gather; every rank gets equal bits."""
    mine_4N = torch.stack((maximum_N, sum_N, moment_N, target_N))
    everyone = mine_4N.new_empty(dist.get_world_size(group) * 4, mine_4N.shape[1])  # gloo wants the ranks' rows stacked
    dist.all_gather_into_tensor(everyone, mine_4N, group=group)
    maximum_WN, sum_WN, moment_WN, target_WN = everyone.unflatten(0, (-1, 4)).unbind(1)
    maximum_N = maximum_WN.amax(dim=0)
    shift_WN = maximum_WN - maximum_N
    decay_WN = shift_WN.exp()
    moment_N = (decay_WN * (moment_WN + shift_WN * sum_WN)).sum(dim=0)
    # only the owner's target is finite; a target that nobody owns stays -inf and stops the run as non-finite
    return maximum_N, (decay_WN * sum_WN).sum(dim=0), moment_N, target_WN.amax(dim=0)
