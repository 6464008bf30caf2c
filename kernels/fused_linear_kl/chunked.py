"""Plain PyTorch on any device: both heads' logits in tiles of rows x columns, never whole, recomputed in backward.

Peak extra memory is a few tiles, one column chunk of each head and some [N, D] rows: independent of V. Columns are the
outer loop, so each chunk of the heads is read once per pass and its gradient is complete before the next one starts.

Shape suffixes: N tokens of non-zero weight, D and E hidden sizes of student and teacher, V this rank's vocabulary rows,
B x C one tile, W ranks.
"""

import torch
import torch.distributed as dist

from osim_kernels.fused_linear_kl.divergence import Divergence, Scaling, log_mixture, logit_slope, merge, no_statistics
from osim_kernels.fused_linear_logprob.products import add_product, logits, operand, spans

# Tiles (rows, columns): of the single-head op, with half the columns, since two tiles live at once.
CPU_TILE = (1024, 512)
CUDA_TILE = (2048, 8192)


def fused_linear_kl_chunked(student_ND, student_VD, teacher_NE, teacher_VE, **options):
    return _FusedLinearKL.apply(
        student_ND, student_VD, teacher_NE.detach(), teacher_VE.detach(), *_positional(**options)
    )


def _positional(*, real_rows, group, divergence, student, teacher):
    return real_rows, group, divergence, student, teacher


class _FusedLinearKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student_ND, student_VD, teacher_NE, teacher_VE, real_rows, group, divergence, student, teacher):
        operands = (student_ND, student_VD, teacher_NE, teacher_VE, real_rows, student, teacher)
        stats_5N = no_statistics(student_ND.shape[0], student_ND)
        for rows, _, student_BC, teacher_BC in _tiles(*operands):
            lead_BC, other_BC = (student_BC, teacher_BC) if divergence.student_leads else (teacher_BC, student_BC)
            stats_5N[:, rows] = merge(torch.stack((stats_5N[:, rows], _statistics(lead_BC, other_BC))))
        stats_5N = merge(over_ranks(stats_5N, group))
        if divergence.kind == "jsd":
            norms_4N = normalisers(stats_5N, divergence)
            sums_2N = torch.zeros_like(norms_4N[:2])
            for rows, _, student_BC, teacher_BC in _tiles(*operands):
                log_q_BC, log_p_BC = normalised(student_BC, teacher_BC, norms_4N[:, rows])
                log_m_BC = log_mixture(log_p_BC, log_q_BC, divergence.beta)
                sums_2N[0, rows] += (log_p_BC.exp() * (log_p_BC - log_m_BC)).sum(dim=1)
                sums_2N[1, rows] += (log_q_BC.exp() * (log_q_BC - log_m_BC)).sum(dim=1)
            value_N, saved_5N = finish_mixture(norms_4N, over_ranks(sums_2N, group).sum(dim=0), divergence)
        else:
            value_N, saved_5N = finish(stats_5N, divergence)
        ctx.save_for_backward(student_ND, student_VD, teacher_NE, teacher_VE, saved_5N)
        ctx.settings = real_rows, divergence, student, teacher
        return value_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_N):
        student_ND, student_VD, teacher_NE, teacher_VE, saved_5N = ctx.saved_tensors
        real_rows, divergence, student, teacher = ctx.settings
        hidden_wanted, weight_wanted = ctx.needs_input_grad[:2]
        gradients = Gradients(student_ND, student_VD, hidden_wanted, weight_wanted, saved_5N.dtype)
        grad_N = grad_N / student.temperature
        for rows, columns, student_BC, teacher_BC in _tiles(
            student_ND, student_VD, teacher_NE, teacher_VE, real_rows, student, teacher
        ):
            cap_slope_BC = softcap_slope(student_BC, student)
            log_q_BC, log_p_BC = normalised(student_BC, teacher_BC, saved_5N[:4, rows])
            slope_BC = logit_slope(divergence, log_p_BC, log_q_BC, saved_5N[4, rows, None])
            slope_BC.mul_(grad_N[rows, None])
            if cap_slope_BC is not None:
                slope_BC.mul_(cap_slope_BC)
            gradients.add(rows, columns, slope_BC)
        return *gradients.finished(), None, None, None, None, None, None, None


def _tiles(student_ND, student_VD, teacher_NE, teacher_VE, real_rows, student: Scaling, teacher: Scaling):
    """Yields (rows, columns, student logits [B, C], teacher logits [B, C]), columns outermost."""
    student_ND, teacher_NE = operand(student_ND), operand(teacher_NE)
    row_chunk, column_chunk = CPU_TILE if student_ND.device.type == "cpu" else CUDA_TILE
    for columns in spans(real_rows, column_chunk):
        student_CD, teacher_CE = operand(student_VD[columns]), operand(teacher_VE[columns])
        for rows in spans(student_ND.shape[0], row_chunk):
            student_BC = logits(student_ND[rows], student_CD, student.temperature, student.softcap)
            teacher_BC = logits(teacher_NE[rows], teacher_CE, teacher.temperature, teacher.softcap)
            yield rows, columns, student_BC, teacher_BC


def _statistics(lead_BC, other_BC):
    """[5, B] of one tile."""
    lead_B, other_B = lead_BC.amax(dim=1), other_BC.amax(dim=1)
    lead_BC, other_BC = lead_BC - lead_B[:, None], other_BC - other_B[:, None]
    weight_BC = lead_BC.exp()
    moment_B = (weight_BC * (lead_BC - other_BC)).sum(dim=1)
    return torch.stack((lead_B, weight_BC.sum(dim=1), other_B, other_BC.exp().sum(dim=1), moment_B))


class Gradients:
    """The student's gradients while tiles of the logits' gradient arrive, columns outermost, summed at least in fp32.

    The head's rows of one column chunk are rounded to its dtype once, when the next chunk begins.
    """

    def __init__(self, hidden_ND, weight_VD, hidden_wanted: bool, weight_wanted: bool, wide: torch.dtype) -> None:
        self.hidden_ND, self.weight_VD, self.operand_ND = hidden_ND, weight_VD, operand(hidden_ND)
        self.grad_hidden_ND = torch.zeros_like(hidden_ND, dtype=wide) if hidden_wanted else None
        self.grad_weight_VD = torch.zeros_like(weight_VD) if weight_wanted else None
        self.columns, self.chunk_CD, self.wide = None, None, wide

    def add(self, rows: slice, columns: slice, slope_BC: torch.Tensor) -> None:
        slope_BC = slope_BC.to(self.operand_ND.dtype)
        if self.grad_hidden_ND is not None:
            add_product(self.grad_hidden_ND[rows], slope_BC, operand(self.weight_VD[columns]))
        if self.grad_weight_VD is not None:
            if columns != self.columns:
                self._flush()
                self.columns, self.chunk_CD = columns, torch.zeros_like(self.weight_VD[columns], dtype=self.wide)
            add_product(self.chunk_CD, slope_BC.T, self.operand_ND[rows])

    def _flush(self) -> None:
        if self.columns is not None:
            self.grad_weight_VD[self.columns] = self.chunk_CD.to(self.grad_weight_VD.dtype)

    def finished(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(gradient of the hidden states, of the head), in their dtypes."""
        self._flush()
        grad_hidden_ND = None if self.grad_hidden_ND is None else self.grad_hidden_ND.to(self.hidden_ND.dtype)
        return grad_hidden_ND, self.grad_weight_VD


def softcap_slope(logits_BC, scaling: Scaling):
    """d cap tanh(x / cap) / dx = 1 - tanh^2, from the capped and scaled logits; None without a cap."""
    if scaling.softcap is None:
        return None
    return 1 - (logits_BC * (scaling.temperature / scaling.softcap)).square_()


def normalisers(stats_5N, divergence: Divergence):
    """[4, N]: the student's maximum and log-sum, then the teacher's."""
    lead_2N = torch.stack((stats_5N[0], stats_5N[1].log()))
    other_2N = torch.stack((stats_5N[2], stats_5N[3].log()))
    return torch.cat((lead_2N, other_2N) if divergence.student_leads else (other_2N, lead_2N))


def normalised(student_BC, teacher_BC, norms_4B):
    """(log q, log p). Two subtractions: maximum + log-sum would lose the log-sum where logits are large."""
    log_q_BC = student_BC.sub_(norms_4B[0, :, None]).sub_(norms_4B[1, :, None])
    return log_q_BC, teacher_BC.sub_(norms_4B[2, :, None]).sub_(norms_4B[3, :, None])


def finish(stats_5N, divergence: Divergence):
    """(KL [N], what backward needs [5, N]) of the two one-pass divergences."""
    value_N = stats_5N[4] / stats_5N[1] - stats_5N[1].log() + stats_5N[3].log()
    return value_N, torch.cat((normalisers(stats_5N, divergence), value_N[None]))


def finish_mixture(norms_4N, sums_2N, divergence: Divergence):
    """(JSD [N], what backward needs [5, N]) from KL(P || M) and KL(Q || M)."""
    value_N = divergence.beta * sums_2N[0] + (1 - divergence.beta) * sums_2N[1]
    return value_N, torch.cat((norms_4N, sums_2N[1:]))


def over_ranks(mine: torch.Tensor, group) -> torch.Tensor:
    """[W, ...]: everyone's tensor, alike on every rank, so that combining them gives equal bits; [1, ...] alone."""
    if group is None:
        return mine[None]
    ranks = dist.get_world_size(group)
    everyone = mine.new_empty(ranks * mine.shape[0], *mine.shape[1:])  # gloo wants the ranks' rows stacked
    dist.all_gather_into_tensor(everyone, mine.contiguous(), group=group)
    return everyone.unflatten(0, (ranks, -1))
