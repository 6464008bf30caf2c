"""Judge scoring: from a judge's last hidden states to calibrated scores, rewards and group advantages, no decoding.

    from osim_kernels.judge_score import DimensionLabels, JudgeLabels, judge_score
    labels = JudgeLabels((DimensionLabels("quality", labels=(((16,),), ((17,),)), values=(1.0, 2.0)),))
    hidden_ISD = hidden_TD[rows_IS]            # one row per item and entry of labels.contexts
    scores = judge_score(hidden_ISD, head_VD, labels, min_mass=0.5, group_I=prompt_of_item)
    scores.reward_I, scores.missing_IJ, scores.group.advantage_I

Only the label rows of the head are multiplied, and the anchors' log-probs come from the fused linear log-prob, so no
[items, vocabulary] tensor exists. On a GPU nothing waits for the host.

Shape suffixes: I items, J dimensions, S contexts (query rows of an item), D hidden, V this rank's rows of the head,
L labels of all dimensions.
"""

from dataclasses import replace
from importlib.util import find_spec
from typing import Literal

import torch
import torch.distributed as dist

from osim_kernels.judge_score.labels import DimensionLabels, JudgeLabels
from osim_kernels.judge_score.pairs import SwappedVerdict, swapped_verdict
from osim_kernels.judge_score.scores import (
    GIVEN,
    LOW_MASS,
    NON_FINITE,
    PRESENT,
    REASONS,
    GroupAdvantages,
    JudgeScores,
)
from osim_kernels.registry import Implementation, Op, anywhere, needs_cuda

__all__ = [
    "GIVEN",
    "LOW_MASS",
    "NON_FINITE",
    "PRESENT",
    "REASONS",
    "AdvantageKind",
    "DimensionLabels",
    "GroupAdvantages",
    "JudgeLabels",
    "JudgeScores",
    "SwappedVerdict",
    "group_advantages",
    "judge_score",
    "swapped_verdict",
]

AdvantageKind = Literal["grpo", "dr_grpo", "rloo"]
EPSILON = 1e-6
LOAD_BYTES = 16  # of a thread in csrc/cuda/judge_score


def _load_triton():
    from osim_kernels.judge_score.triton import judge_score_triton

    return judge_score_triton


def _load_cuda():
    from osim_kernels.judge_score.cuda import judge_score_cuda

    return judge_score_cuda


def _load_gathered():
    from osim_kernels.judge_score.gathered import judge_score_gathered

    return judge_score_gathered


def _load_reference():
    from osim_kernels.judge_score.reference import judge_score_reference

    return judge_score_reference


def _load_triton_groups():
    from osim_kernels.judge_score.triton import group_advantages_triton

    return group_advantages_triton


def _load_cuda_groups():
    from osim_kernels.judge_score.cuda import group_advantages_cuda

    return group_advantages_cuda


def _load_gathered_groups():
    from osim_kernels.judge_score.gathered import group_advantages_gathered

    return group_advantages_gathered


def _load_reference_groups():
    from osim_kernels.judge_score.reference import group_advantages_reference

    return group_advantages_reference


def _triton_refuses(device, dtype, **case) -> str | None:
    known = (torch.float32, torch.bfloat16, torch.float16)
    return needs_cuda(device, dtype) or (None if dtype in known else "knows fp32, bf16 and fp16")


def _cuda_refuses(device, dtype, *, hidden_size: int = 0, **case) -> str | None:
    if find_spec("osim_core._cuda") is None:
        return "osim_core._cuda is not built here"
    if hidden_size * dtype.itemsize % LOAD_BYTES:
        return f"needs rows of whole {LOAD_BYTES}-byte units, not {hidden_size} elements"
    return _triton_refuses(device, dtype)


def _reference_refuses(device, dtype, *, vocab_parallel: bool = False, **case) -> str | None:
    return "holds whole logits, so the head must not be vocabulary-parallel" if vocab_parallel else None


_op = Op(
    "judge_score",
    Implementation(name="triton", load=_load_triton, refuses=_triton_refuses),
    Implementation(name="cuda", load=_load_cuda, refuses=_cuda_refuses),
    Implementation(name="gathered", load=_load_gathered, refuses=anywhere),
    Implementation(name="reference", load=_load_reference, refuses=_reference_refuses),
)
_groups_op = Op(
    "group_advantages",
    Implementation(name="triton", load=_load_triton_groups, refuses=_triton_refuses),
    Implementation(name="cuda", load=_load_cuda_groups, refuses=_cuda_refuses),
    Implementation(name="gathered", load=_load_gathered_groups, refuses=anywhere),
    Implementation(name="reference", load=_load_reference_groups, refuses=anywhere),
)


@torch.no_grad()
def judge_score(
    hidden_ISD: torch.Tensor,
    head_VD: torch.Tensor,
    labels: JudgeLabels,
    *,
    min_mass: float | None,
    missing_IJ: torch.Tensor | None = None,
    multiplier_I: torch.Tensor | None = None,
    group_I: torch.Tensor | None = None,
    advantage: AdvantageKind = "grpo",
    epsilon: float = EPSILON,
    anchor_logprob_IS: torch.Tensor | None = None,
    tensor_parallel_group: dist.ProcessGroup | None = None,
    vocab_start: int = 0,
    vocab_size: int | None = None,
) -> JudgeScores:
    """Scores of every item on every dimension, its reward, and its advantage within its group.

    With m_k = P(label k) over the whole vocabulary (variants added, tokens of a variant multiplied), per dimension

        q = softmax(log m / temperature + bias)          score = sum_k q_k value_k
        normalised = (score - worst) / (best - worst)    mass = sum_k m_k
        raw_reward = sum_j w_j normalised_j / sum_j w_j over the present dimensions,   reward = raw_reward multiplier

    hidden_ISD   [I, S, D] fp32, bf16 or fp16, after the final norm: for each item the rows that `labels.contexts`
                 lists; the same on every rank of the group. Rows of missing items may hold anything, NaN too
    head_VD      [V, D] of the same dtype: this rank's rows of the output head
    labels       what may be answered, and the scale, calibration and weight of each dimension
    min_mass     a dimension whose label mass is below is missing. None: no threshold, and the mass is not computed
                 unless labels of several tokens need the same figures
    missing_IJ   bool [I, J]: what the caller knows to be missing (a prompt that was cut, a failed detector), or None
    multiplier_I [I] of the items' rewards, from detectors; one that is not finite makes the reward missing. None: ones
    group_I      int32 or int64 [I], equal for items to be compared, any numbers; None: no advantages
    advantage, epsilon   as in `group_advantages`
    anchor_logprob_IS    [I, S] log-probs over the whole vocabulary of `anchors.anchor_tokens(labels, device)`, where a
                 caller has them; computed where needed
    tensor_parallel_group, vocab_start, vocab_size   as in fused_linear_logprob: the ranks that share the vocabulary,
                 the id of this rank's first row, and the size of the vocabulary without padding

    Returns JudgeScores, fp32 (fp64 for fp64 inputs), equal bits on every rank of the group. Not differentiable: the
    judge is frozen.

    Raises ValueError for shapes, dtypes or devices that do not fit, a label token outside the vocabulary, a min_mass
    outside [0, 1], and as `group_advantages`.
    """
    vocab_parallel = tensor_parallel_group is not None and dist.get_world_size(tensor_parallel_group) > 1
    if vocab_size is None:
        vocab_size = head_VD.shape[0] * (dist.get_world_size(tensor_parallel_group) if vocab_parallel else 1)
    if hidden_ISD.ndim != 3 or hidden_ISD.dtype != head_VD.dtype or hidden_ISD.shape[2] != head_VD.shape[1]:
        raise ValueError(
            f"judge score: hidden states {list(hidden_ISD.shape)} {hidden_ISD.dtype} must be [items, contexts, hidden] "
            f"and fit the head of {list(head_VD.shape)} {head_VD.dtype}"
        )
    items, contexts = hidden_ISD.shape[:2]
    if contexts != len(labels.contexts):
        raise ValueError(f"judge score: {contexts} query rows an item, but the labels ask for {len(labels.contexts)}")
    if (token := max(token for _, token in labels.edges)) >= vocab_size:
        raise ValueError(f"judge score: label token {token} lies outside the vocabulary of {vocab_size}")
    if min_mass is not None and not 0 <= min_mass <= 1:
        raise ValueError(f"judge score: min_mass is a probability, got {min_mass}")
    for name, x, shape in (
        ("missing_IJ", missing_IJ, (items, len(labels.dimensions))),
        ("multiplier_I", multiplier_I, (items,)),
        ("group_I", group_I, (items,)),
        ("anchor_logprob_IS", anchor_logprob_IS, (items, contexts)),
    ):
        if x is not None and (x.shape != shape or x.device != hidden_ISD.device):
            raise ValueError(
                f"judge score: {name} must be {list(shape)} on {hidden_ISD.device}, got {list(x.shape)} on {x.device}"
            )
    if missing_IJ is not None and missing_IJ.dtype != torch.bool:
        raise ValueError(f"judge score: missing_IJ must be bool, got {missing_IJ.dtype}")
    wide = torch.promote_types(hidden_ISD.dtype, torch.float32)
    compute = _op.select(
        hidden_ISD.device, hidden_ISD.dtype, vocab_parallel=vocab_parallel, hidden_size=hidden_ISD.shape[2]
    )
    scores = compute(
        hidden_ISD,
        head_VD,
        labels,
        min_mass=min_mass,
        anchor_logprob_IS=None if anchor_logprob_IS is None else anchor_logprob_IS.to(wide),
        missing_IJ=missing_IJ,
        multiplier_I=None if multiplier_I is None else multiplier_I.to(wide),
        group=tensor_parallel_group if vocab_parallel else None,
        vocab_start=vocab_start,
        vocab_size=vocab_size,
    )
    if group_I is None:
        return scores
    return replace(scores, group=group_advantages(scores.reward_I, group_I, kind=advantage, epsilon=epsilon))


@torch.no_grad()
def group_advantages(
    reward_I: torch.Tensor,
    group_I: torch.Tensor,
    *,
    kind: AdvantageKind = "grpo",
    epsilon: float = EPSILON,
) -> GroupAdvantages:
    """Rewards relative to the other items of the group, over present rewards only.

        grpo     (r - mean) / (std + epsilon)     Shao et al. 2024 (arXiv 2402.03300); std with n - 1 below
        dr_grpo  r - mean                         Liu et al. 2025 (arXiv 2503.20783)
        rloo     r - mean of the others           Ahmadian et al. 2024 (arXiv 2402.14740)

    reward_I  fp32 or fp64 [I]; one that is not finite is missing
    group_I   int32 or int64 [I], any numbers

    A missing reward, and a present one that is alone, get 0. Equal rewards get exactly 0: differences are taken before
    sums, so that rounding is never divided by a small deviation.

    Raises ValueError for other shapes or dtypes, an unknown kind or an epsilon that is not above 0.
    """
    if reward_I.ndim != 1 or reward_I.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"group advantages: rewards must be fp32 [items], got {reward_I.dtype} {list(reward_I.shape)}")
    if group_I.shape != reward_I.shape or group_I.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"group advantages: group_I must be integers {list(reward_I.shape)}, got {group_I.dtype} "
            f"{list(group_I.shape)}"
        )
    if kind not in ("grpo", "dr_grpo", "rloo"):
        raise ValueError(f"group advantages: kind must be grpo, dr_grpo or rloo, got {kind!r}")
    if not epsilon > 0:
        raise ValueError(f"group advantages: epsilon must be above 0, got {epsilon}")
    return _groups_op.select(reward_I.device, reward_I.dtype)(reward_I, group_I, kind, epsilon)
