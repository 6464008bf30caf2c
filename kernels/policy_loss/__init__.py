"""Policy loss: the clipped surrogate family per token, with its metrics, in one pass.

    from osim_kernels.policy_loss import DAPO, policy_loss
    loss_T, metrics = policy_loss(logprob_T, old_logprob_T, advantage_T, weights_T=weights_T, config=DAPO)
    loss = (weights_T * loss_T).sum() / normaliser          # the policy stream of the objective

Shape suffixes: T local tokens, S sequences, C chunks of the local row.
"""

import torch
import torch.distributed as dist

from osim_kernels.policy_loss.config import CISPO, DAPO, GRPO, GSPO, PolicyLossConfig
from osim_kernels.policy_loss.metrics import PolicyMetrics
from osim_kernels.registry import Implementation, Op, anywhere, needs_cuda

__all__ = ["CISPO", "DAPO", "GRPO", "GSPO", "PolicyLossConfig", "PolicyMetrics", "policy_loss"]


def _load_triton():
    from osim_kernels.policy_loss.triton import policy_loss_triton

    return policy_loss_triton


def _load_reference():
    from osim_kernels.policy_loss.reference import policy_loss_reference

    return policy_loss_reference


def _triton_refuses(device, dtype, **case) -> str | None:
    return needs_cuda(device, dtype) or (None if dtype == torch.float32 else "log-probs must be fp32")


_op = Op(
    "policy_loss",
    Implementation(name="triton", load=_load_triton, refuses=_triton_refuses),
    Implementation(name="reference", load=_load_reference, refuses=anywhere),
)


def policy_loss(
    logprob_T: torch.Tensor,
    old_logprob_T: torch.Tensor,
    advantage_T: torch.Tensor,
    *,
    weights_T: torch.Tensor,
    config: PolicyLossConfig,
    sampler_logprob_T: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    context_parallel_group: dist.ProcessGroup | None = None,
) -> tuple[torch.Tensor, PolicyMetrics]:
    """l_t = -w A r with r bounded as `config` says, or CISPO's -w A sg(r) log p, before any loss weight.

    logprob_T          fp32 [T] (fp64 for checks): log p of each token under the weights being trained; differentiable
    old_logprob_T      [T]: the trainer's log p when the tokens were collected; a constant
    advantage_T        [T]: a constant
    weights_T          bool or float [T]; where it is 0 the loss and its gradient are 0 whatever the other inputs hold
                       there, NaN included. Only zero or not matters: the objective multiplies the weights in
    sampler_logprob_T  [T] or None: the rollout engine's log p, for the mismatch metrics and `config.sampler_cap`
    cu_seqlens         int [S+1] row borders of the sequences, ascending, sentinels allowed; needed for the sequence
                       ratio alone. Under context parallelism [C, S+1]: the borders of every sequence within each of
                       this rank's chunks, in local rows (equal borders where a sequence has no tokens there)
    context_parallel_group  ranks that hold the other chunks of the same sequences, or None

    Returns (loss [T] in logprob's dtype, metrics). Log-ratios are held within +-20 before `exp`, so that no input
    overflows; past that the gradient is 0. At a bound itself the gradient passes. Differentiable once.

    Raises ValueError for tensors of another shape or dtype, for a `sampler_cap` without sampler log-probs and for the
    sequence ratio without `cu_seqlens`.
    """
    for name, x_T in (
        ("old_logprob", old_logprob_T),
        ("advantage", advantage_T),
        ("sampler_logprob", sampler_logprob_T),
    ):
        if x_T is not None and (x_T.shape != logprob_T.shape or x_T.dtype != logprob_T.dtype):
            raise ValueError(
                f"policy loss: {name}_T is {x_T.dtype} {list(x_T.shape)}, logprob_T {logprob_T.dtype} "
                f"{list(logprob_T.shape)}; they must be alike"
            )
    if logprob_T.ndim != 1 or not logprob_T.is_floating_point():
        raise ValueError(f"policy loss: logprob_T must be floating [T], got {logprob_T.dtype} {list(logprob_T.shape)}")
    if weights_T.shape != logprob_T.shape:
        raise ValueError(f"policy loss: weights_T is {list(weights_T.shape)}, logprob_T {list(logprob_T.shape)}")
    if config.sampler_cap is not None and sampler_logprob_T is None:
        raise ValueError("policy loss: sampler_cap needs sampler_logprob_T")
    if config.ratio == "sequence":
        if cu_seqlens is None:
            raise ValueError("policy loss: the sequence ratio needs cu_seqlens")
        if cu_seqlens.ndim not in (1, 2) or cu_seqlens.is_floating_point() or cu_seqlens.shape[-1] < 2:
            raise ValueError(
                f"policy loss: cu_seqlens must be integer [S+1] or [C, S+1], got {cu_seqlens.dtype} "
                f"{list(cu_seqlens.shape)}"
            )
        cu_seqlens = torch.atleast_2d(cu_seqlens)
    return _op.select(logprob_T.device, logprob_T.dtype)(
        logprob_T,
        old_logprob_T.detach(),
        None if sampler_logprob_T is None else sampler_logprob_T.detach(),
        advantage_T.detach(),
        weights_T.detach(),
        cu_seqlens,
        context_parallel_group,
        config,
    )
