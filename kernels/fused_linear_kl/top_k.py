"""The student's log-probs of K given ids and of everything else together, tiled as chunked.py is: [N, K + 1].

Everything the divergences over stored top-k log-probs need from the head. The rest is summed directly, not as 1 minus
the ids' mass, so that a tail of 1e-12 keeps its digits.

Shape suffixes: N tokens of non-zero weight, D hidden, V this rank's vocabulary rows, K ids, L = K + 1 buckets,
B x C one tile.
"""

import torch

from osim_kernels.fused_linear_kl import chunked
from osim_kernels.fused_linear_kl.divergence import LOWEST, Scaling
from osim_kernels.fused_linear_logprob.products import logits, operand, spans


def bucket_logprobs_chunked(hidden_ND, weight_VD, ids_NK, *, real_rows, group, student: Scaling):
    return _BucketLogprobs.apply(hidden_ND, weight_VD, ids_NK, real_rows, group, student)


class _BucketLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, ids_NK, real_rows, group, student):
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        num_rows = hidden_ND.shape[0]
        picked_NK = torch.full(ids_NK.shape, -torch.inf, dtype=wide, device=hidden_ND.device)
        tail_2N = torch.zeros(2, num_rows, dtype=wide, device=hidden_ND.device)  # maximum, sum of exp(z - maximum)
        tail_2N[0] = LOWEST
        for rows, columns, logits_BC in _tiles(hidden_ND, weight_VD, real_rows, student):
            place_BK, inside_BK = _places(ids_NK[rows], columns)
            hit_BK = logits_BC.gather(1, place_BK.where(inside_BK, 0))
            picked_NK[rows] = torch.where(inside_BK, hit_BK, picked_NK[rows])
            logits_BC = _overwrite(logits_BC, place_BK, torch.full_like(hit_BK, -torch.inf))
            maximum_B = torch.maximum(tail_2N[0, rows], logits_BC.amax(dim=1))
            decayed_B = tail_2N[1, rows] * (tail_2N[0, rows] - maximum_B).exp()
            tail_2N[1, rows] = decayed_B + logits_BC.sub_(maximum_B[:, None]).exp_().sum(dim=1)
            tail_2N[0, rows] = maximum_B
        logprobs_NL, top_N, log_sum_N = normalised(picked_NK, tail_2N, group)
        ctx.save_for_backward(hidden_ND, weight_VD, ids_NK, top_N, log_sum_N, logprobs_NL)
        ctx.settings = real_rows, student
        return logprobs_NL

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_NL):
        hidden_ND, weight_VD, ids_NK, top_N, log_sum_N, logprobs_NL = ctx.saved_tensors
        real_rows, student = ctx.settings
        gradients = chunked.Gradients(hidden_ND, weight_VD, *ctx.needs_input_grad[:2], log_sum_N.dtype)
        ids_grad_NK, tail_grad_N1, all_N1 = bucket_slopes(grad_NL, logprobs_NL, student.temperature)
        tail_N1 = logprobs_NL[:, -1:].clamp(min=LOWEST)
        for rows, columns, logits_BC in _tiles(hidden_ND, weight_VD, real_rows, student):
            cap_slope_BC = chunked.softcap_slope(logits_BC, student)
            log_q_BC = logits_BC.sub_(top_N[rows, None]).sub_(log_sum_N[rows, None])
            # in the tail q_j / q_tail is at most 1; at an id it may be anything and is written over below
            share_BC = (log_q_BC - tail_N1[rows]).clamp_(max=0.0).exp_()
            slope_BC = share_BC.mul_(tail_grad_N1[rows]).sub_(log_q_BC.exp_().mul_(all_N1[rows]))
            slope_BC = _overwrite(slope_BC, _places(ids_NK[rows], columns)[0], ids_grad_NK[rows])
            if cap_slope_BC is not None:
                slope_BC.mul_(cap_slope_BC)
            gradients.add(rows, columns, slope_BC)
        return *gradients.finished(), None, None, None, None


def joined(tails_W2N: torch.Tensor) -> torch.Tensor:
    """[2, N] maximum and sum of exp(z - maximum) over the union of the W parts' columns."""
    maximum_N = tails_W2N[:, 0].amax(dim=0)
    return torch.stack((maximum_N, (tails_W2N[:, 1] * (tails_W2N[:, 0] - maximum_N).exp()).sum(dim=0)))


def normalised(picked_NK, tail_2N, group):
    """(log-probs [N, L], top logit [N], log of the sum of exp(z - top) [N]) from this rank's picked logits, -inf where
    another rank holds the id, and its tail."""
    tail_2N = joined(chunked.over_ranks(tail_2N, group))
    picked_NK = chunked.over_ranks(picked_NK, group).amax(dim=0)  # finite at the owner alone
    top_N = torch.maximum(tail_2N[0], picked_NK.amax(dim=1))
    tail_N = tail_2N[0] - top_N + tail_2N[1].log()
    shifted_NL = torch.cat((picked_NK - top_N[:, None], tail_N[:, None]), dim=1)
    log_sum_N = shifted_NL.logsumexp(dim=1)
    return shifted_NL - log_sum_N[:, None], top_N, log_sum_N


def bucket_slopes(grad_NL, logprobs_NL, temperature: float):
    """What makes d loss / d logit before the soft cap: at the ids [N, K] itself; elsewhere q_j / q_tail times the
    second result [N, 1] minus q_j times the third [N, 1]."""
    grad_NL = grad_NL.masked_fill(logprobs_NL == -torch.inf, 0.0) / temperature  # empty buckets
    all_N1 = grad_NL.sum(dim=1, keepdim=True)
    ids_grad_NK = grad_NL[:, :-1] - all_N1 * logprobs_NL[:, :-1].exp()
    return ids_grad_NK, grad_NL[:, -1:], all_N1


def _tiles(hidden_ND, weight_VD, real_rows, student: Scaling):
    """Yields (rows, columns, logits [B, C]), columns outermost."""
    operand_ND = operand(hidden_ND)
    row_chunk, column_chunk = chunked.CPU_TILE if hidden_ND.device.type == "cpu" else chunked.CUDA_TILE
    for columns in spans(real_rows, column_chunk):
        weight_CD = operand(weight_VD[columns])
        for rows in spans(hidden_ND.shape[0], row_chunk):
            yield rows, columns, logits(operand_ND[rows], weight_CD, student.temperature, student.softcap)


def _places(ids_BK, columns: slice):
    """(column of each id inside the tile, or C where it lies elsewhere; whether it lies inside)."""
    width = columns.stop - columns.start
    place_BK = ids_BK - columns.start
    inside_BK = (place_BK >= 0) & (place_BK < width)
    return place_BK.where(inside_BK, width), inside_BK


def _overwrite(tile_BC, place_BK, values_BK):
    """tile_BC with values_BK at their places; place C, one past the tile, is thrown away."""
    padded = torch.nn.functional.pad(tile_BC, (0, 1))
    return padded.scatter_(1, place_BK, values_BK)[:, :-1]
