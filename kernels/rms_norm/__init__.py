"""RMSNorm over the last dimension.

from osim_kernels.rms_norm import rms_norm
normed = rms_norm(x, weight, eps)
"""

import torch

from osim_kernels.registry import Implementation, Op, anywhere, needs_cuda

__all__ = ["rms_norm"]


def _load_liger():
    from osim_kernels.rms_norm.liger import rms_norm_liger

    return rms_norm_liger


def _load_reference():
    from osim_kernels.rms_norm.reference import rms_norm_reference

    return rms_norm_reference


_op = Op(
    "rms_norm",
    Implementation(name="liger", load=_load_liger, refuses=needs_cuda),
    Implementation(name="reference", load=_load_reference, refuses=anywhere),
)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, the mean and the division in fp32.

    x       [..., D] fp32, bf16 or fp16
    weight  [D], used in x's dtype
    eps     added to the mean square, dimensionless

    Returns [..., D] in x's dtype. Differentiable in x and weight. Method: Zhang and Sennrich 2019.
    """
    assert weight.shape == x.shape[-1:], (weight.shape, x.shape)
    return _op.select(x.device, x.dtype)(x, weight, eps)
