"""Liger's Triton RMSNorm (CUDA). casting_mode "llama" is the reference's order of rounding."""

import torch
from liger_kernel.ops.rms_norm import LigerRMSNormFunction


def rms_norm_liger(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    # in_place=False: writing dX over dY would corrupt a gradient that a residual branch also reads
    return LigerRMSNormFunction.apply(x, weight.to(x.dtype), eps, 0.0, "llama", False)
