"""Liger's Triton SwiGLU over a concatenated gate and up tensor (CUDA)."""

import torch
from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction


def swiglu_liger(gate_up: torch.Tensor) -> torch.Tensor:
    return LigerFusedGateUpSiLUMulFunction.apply(gate_up)
