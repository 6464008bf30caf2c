"""Liger's Triton SwiGLU over a concatenated gate and up tensor (CUDA)."""

import torch
from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction


def swiglu_liger(gate_up: torch.Tensor) -> torch.Tensor:
    # liger-kernel 0.8.5 returns a flattened gradient, which autograd refuses for anything but two dimensions
    flat = gate_up.reshape(-1, gate_up.shape[-1])
    return LigerFusedGateUpSiLUMulFunction.apply(flat).reshape(*gate_up.shape[:-1], -1)
