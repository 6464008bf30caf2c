"""Fused linear log-prob: from hidden states and the output head to per-token log-probs and entropies, without [T, V].

    from osim_kernels.fused_linear_logprob import fused_linear_logprob
    logprob_T, _ = fused_linear_logprob(hidden_TD, head_VD, batch.labels_T, weights_T=batch.weights["ce"])
    loss = -(batch.weights["ce"] * logprob_T).sum() / normaliser

Shape suffixes: T tokens, D hidden, V this rank's rows of the head.
"""

import torch
import torch.distributed as dist

from osim_kernels.registry import Implementation, Op, anywhere

__all__ = ["fused_linear_logprob"]

TMA_BYTES = 16  # the hardware's tensor copies address whole units of this


def _load_triton():
    from osim_kernels.fused_linear_logprob.triton import fused_linear_logprob_triton

    return fused_linear_logprob_triton


def _triton_refuses(device, dtype, *, hidden_size: int = 0, **case) -> str | None:
    if device.type != "cuda":
        return "needs a CUDA device"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return "knows fp32, bf16 and fp16"
    if hidden_size * dtype.itemsize % TMA_BYTES:
        return f"needs rows of whole {TMA_BYTES}-byte units, not {hidden_size} elements"
    return None


def _load_chunked():
    from osim_kernels.fused_linear_logprob.chunked import fused_linear_logprob_chunked

    return fused_linear_logprob_chunked


def _load_reference():
    from osim_kernels.fused_linear_logprob.reference import fused_linear_logprob_reference

    return fused_linear_logprob_reference


def _reference_refuses(device, dtype, *, vocab_parallel: bool = False, **case) -> str | None:
    return "holds whole logits, so the head must not be vocabulary-parallel" if vocab_parallel else None


_op = Op(
    "fused_linear_logprob",
    Implementation(name="triton", load=_load_triton, refuses=_triton_refuses),
    Implementation(name="chunked", load=_load_chunked, refuses=anywhere),
    Implementation(name="reference", load=_load_reference, refuses=_reference_refuses),
)


def fused_linear_logprob(
    hidden_TD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_T: torch.Tensor,
    *,
    weights_T: torch.Tensor | None = None,
    active_rows: int | None = None,
    tensor_parallel_group: dist.ProcessGroup | None = None,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    logit_softcap: float | None = None,
    with_entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probability of each target under softmax(softcap(hidden @ weight.T) / temperature), and the entropy.

    hidden_TD              [T, D] fp32, bf16 or fp16; the same on every rank of the group
    weight_VD              [V, D] of the same dtype: this rank's rows of the output head
    targets_T              int64 [T], ids in the whole vocabulary; rows of weight 0 may hold anything
    weights_T              bool or float [T]; rows where it is 0 give 0, pass no gradient and cost no matmul. Only zero
                           or not matters. None means every row
    active_rows            how many weights are not 0, if the host knows: without it, counting them synchronises a GPU
                           once per call. A wrong number makes every result NaN on a GPU
    tensor_parallel_group  the ranks that share the vocabulary, or None for one rank holding all of it
    vocab_start            id of this rank's first row
    vocab_size             real size of the whole vocabulary; head rows beyond it are padding of probability 0 and of
                           gradient 0. None means no padding
    temperature            divides the logits (after the soft cap), > 0
    logit_softcap          cap * tanh(logit / cap), or None
    with_entropy           also return the entropy in nats, differentiable like the log-prob

    Returns (logprob [T], entropy [T] or None), fp32 (fp64 for fp64 inputs), equal bits on every rank of the group.

    Gradients: the head's is complete for this rank's rows and in the head's dtype, accumulated in fp32. The hidden
    states' is this rank's PARTIAL contribution: sum it over the group, as Megatron's copy-to or gather-from region in
    front of the head does. Gradients flowing in must be alike on every rank. Differentiable once.

    Raises ValueError for a target outside the vocabulary or a wrong `active_rows` (both checked on the CPU; on a GPU
    the target's log-prob is -inf), for shapes or dtypes that do not fit, a temperature or a soft cap that is not above
    0, and on a GPU for a head whose rows are not contiguous.
    """
    if hidden_TD.dtype != weight_VD.dtype or hidden_TD.shape[1] != weight_VD.shape[1]:
        raise ValueError(
            f"hidden states {list(hidden_TD.shape)} {hidden_TD.dtype} do not fit "
            f"a head of {list(weight_VD.shape)} {weight_VD.dtype}"
        )
    if targets_T.shape != hidden_TD.shape[:1] or targets_T.dtype != torch.int64:
        raise ValueError(f"targets must be int64 [{hidden_TD.shape[0]}], got {targets_T.dtype} {list(targets_T.shape)}")
    if weights_T is not None and weights_T.shape != targets_T.shape:
        raise ValueError(f"weights must be [{hidden_TD.shape[0]}] as the targets, got {list(weights_T.shape)}")
    if logit_softcap is not None and not logit_softcap > 0:
        raise ValueError(f"logit_softcap must be above 0, got {logit_softcap}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    vocab_parallel = tensor_parallel_group is not None and dist.get_world_size(tensor_parallel_group) > 1
    if vocab_size is None:
        num_ranks = dist.get_world_size(tensor_parallel_group) if vocab_parallel else 1
        vocab_size = weight_VD.shape[0] * num_ranks
    compute = _op.select(
        hidden_TD.device, hidden_TD.dtype, vocab_parallel=vocab_parallel, hidden_size=hidden_TD.shape[1]
    )
    return compute(
        hidden_TD,
        weight_VD,
        targets_T,
        weights_T=weights_T,
        active_rows=active_rows,
        tensor_parallel_group=tensor_parallel_group if vocab_parallel else None,
        vocab_start=vocab_start,
        vocab_size=vocab_size,
        temperature=temperature,
        logit_softcap=logit_softcap,
        with_entropy=with_entropy,
    )
