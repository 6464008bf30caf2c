"""Fused linear KL: divergence between a student's and a teacher's next-token distributions, without [T, V].

    from osim_kernels.fused_linear_kl import fused_linear_kl, fused_linear_kl_top_k
    kl_T = fused_linear_kl(hidden_TD, head_VD, teacher_hidden_TE, teacher_head_VE, divergence="reverse")
    kl_T = fused_linear_kl_top_k(hidden_TD, head_VD, ids_TK, logprobs_TK)         # from stored teacher log-probs

Shape suffixes: T tokens, N of them of non-zero weight, D and E hidden sizes of student and teacher, V and U this rank's
rows of their heads, K stored ids a token.
"""

from typing import Literal

import torch
import torch.distributed as dist

from osim_kernels.fused_linear_kl.divergence import Divergence, Scaling, divergence_of
from osim_kernels.fused_linear_logprob import TMA_BYTES
from osim_kernels.fused_linear_logprob.rows import ActiveRows
from osim_kernels.registry import Implementation, Op, anywhere

__all__ = ["fused_linear_kl", "fused_linear_kl_top_k"]

MASS_SLACK = 1e-2  # stored log-probs may be rounded to bf16; more mass than this above 1 is a mistake
TAIL_FLOOR = -30.0  # least log-probability of the other side's tail bucket: an empty tail costs a finite amount


def _load_triton():
    from osim_kernels.fused_linear_kl.triton import fused_linear_kl_triton

    return fused_linear_kl_triton


def _load_chunked():
    from osim_kernels.fused_linear_kl.chunked import fused_linear_kl_chunked

    return fused_linear_kl_chunked


def _load_reference():
    from osim_kernels.fused_linear_kl.reference import fused_linear_kl_reference

    return fused_linear_kl_reference


def _load_triton_top_k():
    from osim_kernels.fused_linear_kl.top_k_triton import bucket_logprobs_triton

    return bucket_logprobs_triton


def _load_chunked_top_k():
    from osim_kernels.fused_linear_kl.top_k import bucket_logprobs_chunked

    return bucket_logprobs_chunked


def _load_reference_top_k():
    from osim_kernels.fused_linear_kl.reference import bucket_logprobs_reference

    return bucket_logprobs_reference


def _triton_refuses(device, dtype, *, teacher_dtype=None, hidden_sizes=(), **case) -> str | None:
    if device.type != "cuda":
        return "needs a CUDA device"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return "knows fp32, bf16 and fp16"
    if teacher_dtype not in (None, dtype):
        return f"needs one dtype, and the teacher's is {str(teacher_dtype).removeprefix('torch.')}"
    if any(size * dtype.itemsize % TMA_BYTES for size in hidden_sizes):
        return f"needs rows of whole {TMA_BYTES}-byte units, not {' and '.join(map(str, hidden_sizes))} elements"
    return None


def _reference_refuses(device, dtype, *, vocab_parallel: bool = False, **case) -> str | None:
    return "holds whole logits, so the heads must not be vocabulary-parallel" if vocab_parallel else None


_op = Op(
    "fused_linear_kl",
    Implementation(name="triton", load=_load_triton, refuses=_triton_refuses),
    Implementation(name="chunked", load=_load_chunked, refuses=anywhere),
    Implementation(name="reference", load=_load_reference, refuses=_reference_refuses),
)
_top_k_op = Op(
    "fused_linear_kl_top_k",
    Implementation(name="triton", load=_load_triton_top_k, refuses=_triton_refuses),
    Implementation(name="chunked", load=_load_chunked_top_k, refuses=anywhere),
    Implementation(name="reference", load=_load_reference_top_k, refuses=_reference_refuses),
)


def fused_linear_kl(
    student_hidden_TD: torch.Tensor,
    student_weight_VD: torch.Tensor,
    teacher_hidden_TE: torch.Tensor,
    teacher_weight_UE: torch.Tensor,
    *,
    divergence: Literal["forward", "reverse", "jsd"] = "forward",
    beta: float = 0.5,
    weights_T: torch.Tensor | None = None,
    active_rows: int | None = None,
    tensor_parallel_group: dist.ProcessGroup | None = None,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
) -> torch.Tensor:
    """Divergence per token over the whole vocabulary; with P the teacher and Q the student, in nats:

        forward KL(P || Q), reverse KL(Q || P), jsd beta KL(P || M) + (1 - beta) KL(Q || M), M = beta P + (1 - beta) Q

    (the generalised Jensen-Shannon divergence of GKD, Agarwal et al., arXiv 2306.13649).

    student_hidden_TD      [T, D] fp32, bf16 or fp16; the same on every rank of the group
    student_weight_VD      [V, D] of the same dtype: this rank's rows of the student's head
    teacher_hidden_TE, teacher_weight_UE   the teacher's, of one dtype; constants. Both heads share one vocabulary;
                           without a group they may be padded differently, with one their shards must match
    weights_T              bool or float [T]; rows where it is 0 give 0, pass no gradient and cost no matmul, and may
                           hold NaN. None means every row
    active_rows            how many weights are not 0, if the host knows: without it, counting them synchronises a GPU
                           once per call. A wrong number makes every result NaN on a GPU
    tensor_parallel_group  the ranks that share the vocabulary, or None for one rank holding all of it
    vocab_start            id of this rank's first row
    vocab_size             real size of the vocabulary; rows beyond it are padding of probability 0. None: no padding
    *_temperature          divides the logits (after the soft cap), > 0. No factor T^2 is applied
    *_softcap              cap * tanh(logit / cap), or None

    Returns fp32 [T] (fp64 for fp64 inputs), equal bits on every rank of the group. Gradients reach the student alone:
    the head's is complete for this rank's rows, the hidden states' is this rank's PARTIAL sum, as in
    fused_linear_logprob. Differentiable once.

    Raises ValueError for an unknown divergence, a beta outside (0, 1), a temperature or cap that is not above 0, a
    wrong `active_rows` (its count is checked on the CPU), and operands that do not fit together.
    """
    _fit("student", student_hidden_TD, student_weight_VD)
    _fit("teacher", teacher_hidden_TE, teacher_weight_UE)
    if student_hidden_TD.shape[0] != teacher_hidden_TE.shape[0]:
        raise ValueError(f"{student_hidden_TD.shape[0]} student rows, {teacher_hidden_TE.shape[0]} teacher rows")
    chosen = Divergence(divergence, beta)
    scalings = Scaling(student_temperature, student_softcap), Scaling(teacher_temperature, teacher_softcap)
    group, real_rows = _vocabulary(student_weight_VD, tensor_parallel_group, vocab_start, vocab_size)
    if teacher_weight_UE.shape[0] < real_rows or (
        group is not None and len(teacher_weight_UE) != len(student_weight_VD)
    ):
        raise ValueError(
            f"the teacher's head has {teacher_weight_UE.shape[0]} rows here, the student's "
            f"{student_weight_VD.shape[0]}, {real_rows} of them real: both must hold the same tokens"
        )
    compute = _op.select(
        student_hidden_TD.device,
        student_hidden_TD.dtype,
        vocab_parallel=group is not None,
        teacher_dtype=teacher_hidden_TE.dtype,
        hidden_sizes=(student_hidden_TD.shape[1], teacher_hidden_TE.shape[1]),
    )
    active = _active(weights_T, active_rows, student_hidden_TD)
    kl_N = compute(
        active.select(student_hidden_TD),
        student_weight_VD,
        active.select(teacher_hidden_TE.detach()),
        teacher_weight_UE.detach(),
        real_rows=real_rows,
        group=group,
        divergence=chosen,
        student=scalings[0],
        teacher=scalings[1],
    )
    return active.put_back(kl_N)


def fused_linear_kl_top_k(
    student_hidden_TD: torch.Tensor,
    student_weight_VD: torch.Tensor,
    ids_TK: torch.Tensor,
    logprobs_TK: torch.Tensor,
    *,
    divergence: Literal["forward", "reverse", "jsd"] = "forward",
    beta: float = 0.5,
    weights_T: torch.Tensor | None = None,
    active_rows: int | None = None,
    tensor_parallel_group: dist.ProcessGroup | None = None,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    student_temperature: float = 1.0,
    student_softcap: float | None = None,
) -> torch.Tensor:
    """Divergence per token over K + 1 outcomes: the K stored tokens, and all others together as one tail bucket.

    ids_TK       int64 [T, K] in the whole vocabulary, distinct within a row; -1 pads a shorter row
    logprobs_TK  [T, K] the teacher's log-probs of those ids under the whole vocabulary, at the temperature wanted;
                 -inf at padding. Their mass may fall short of 1 by the tail, and pass 1 by rounding alone

    Everything else as in `fused_linear_kl`. The value never exceeds the full divergence, and for "forward" falls short
    of it by exactly p_tail KL(P given the tail || Q given the tail) (chain rule of relative entropy). Where one side's
    tail is empty the other side's costs at most what log-probability TAIL_FLOOR implies.

    Raises ValueError as `fused_linear_kl`, and on the CPU for ids outside the vocabulary, ids that repeat within a row
    and stored mass above 1 (unchecked on a GPU, where reading them would wait for the device).
    """
    _fit("student", student_hidden_TD, student_weight_VD)
    if ids_TK.ndim != 2 or ids_TK.shape[0] != student_hidden_TD.shape[0] or ids_TK.shape != logprobs_TK.shape:
        raise ValueError(
            f"ids {list(ids_TK.shape)} and log-probs {list(logprobs_TK.shape)} must both be "
            f"[{student_hidden_TD.shape[0]}, K]"
        )
    if ids_TK.dtype != torch.int64 or ids_TK.shape[1] == 0:
        raise ValueError(f"ids must be int64 with at least one column, got {ids_TK.dtype} {list(ids_TK.shape)}")
    chosen, scaling = Divergence(divergence, beta), Scaling(student_temperature, student_softcap)
    group, real_rows = _vocabulary(student_weight_VD, tensor_parallel_group, vocab_start, vocab_size)
    compute = _top_k_op.select(
        student_hidden_TD.device,
        student_hidden_TD.dtype,
        vocab_parallel=group is not None,
        hidden_sizes=student_hidden_TD.shape[1:],
    )
    active = _active(weights_T, active_rows, student_hidden_TD)
    hidden_ND, ids_NK, log_p_NK = (active.select(x) for x in (student_hidden_TD, ids_TK, logprobs_TK.detach()))
    known_NK = ids_NK >= 0
    log_p_NK = log_p_NK.to(torch.promote_types(hidden_ND.dtype, torch.float32)).masked_fill(~known_NK, -torch.inf)
    mass_N1 = log_p_NK.exp().sum(dim=1, keepdim=True)
    if ids_NK.device.type == "cpu" and ids_NK.numel():
        _check_stored(ids_NK, mass_N1, len(student_weight_VD) if vocab_size is None and group is None else vocab_size)
    local_NK = torch.where(known_NK, ids_NK - vocab_start, -1)
    log_q_NL = compute(hidden_ND, student_weight_VD, local_NK, real_rows=real_rows, group=group, student=scaling)
    log_p_NL = torch.cat((log_p_NK, (1 - mass_N1).clamp(min=0).log()), dim=1)
    # an empty tail against one that is not: without a floor, rounding in the stored mass would cost infinity
    tail_L = torch.arange(log_q_NL.shape[1], device=log_q_NL.device) == log_q_NL.shape[1] - 1
    if chosen.kind == "forward":
        log_q_NL = torch.where(tail_L, log_q_NL.clamp(min=TAIL_FLOOR), log_q_NL)
    elif chosen.kind == "reverse":
        log_p_NL = torch.where(tail_L, log_p_NL.clamp(min=TAIL_FLOOR), log_p_NL)
    return active.put_back(divergence_of(chosen, log_p_NL, log_q_NL))


def _fit(whose: str, hidden, weight) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or hidden.dtype != weight.dtype:
        raise ValueError(
            f"{whose}: hidden states {hidden.dtype} {list(hidden.shape)} do not fit the head {weight.dtype} "
            f"{list(weight.shape)}"
        )


def _vocabulary(weight_VD, group, vocab_start: int, vocab_size: int | None):
    """(group or None where one rank holds everything, real rows of this rank's shard)."""
    if group is not None and dist.get_world_size(group) == 1:
        group = None
    if vocab_size is None:
        return group, weight_VD.shape[0]
    return group, min(max(vocab_size - vocab_start, 0), weight_VD.shape[0])


def _check_stored(ids_NK, mass_N1, vocab_size: int | None) -> None:
    ordered_NK = ids_NK.sort(dim=1).values
    if ((ordered_NK[:, 1:] == ordered_NK[:, :-1]) & (ordered_NK[:, 1:] >= 0)).any():
        raise ValueError("stored ids repeat within a row: their mass would count twice")
    if ordered_NK.min() < -1 or (vocab_size is not None and ordered_NK.max() >= vocab_size):
        raise ValueError(
            f"stored ids {int(ordered_NK.min())}..{int(ordered_NK.max())} leave the vocabulary of {vocab_size}"
        )
    if mass_N1.max() > 1 + MASS_SLACK:
        raise ValueError(f"stored log-probs of one token sum to a mass of {mass_N1.max():.3f}; are they normalised?")


def _active(weights_T, active_rows: int | None, hidden_TD) -> ActiveRows:
    if weights_T is not None and weights_T.shape != hidden_TD.shape[:1]:
        raise ValueError(f"weights_T is {list(weights_T.shape)}, there are {hidden_TD.shape[0]} rows")
    return ActiveRows.of(weights_T, active_rows, hidden_TD.shape[0])
