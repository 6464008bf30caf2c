"""Kernels: one folder per operation, each with a plain PyTorch truth, faster implementations and a README.

Imports as `osim_kernels`. Importing this package fills the registry; `registry.report(device, dtype)` says what
runs where. Take an operation from its own package:

    from osim_kernels.packed_attention import Segments, packed_attention
    from osim_kernels.fused_linear_logprob import fused_linear_logprob
    from osim_kernels.fused_linear_kl import fused_linear_kl, fused_linear_kl_top_k
    from osim_kernels.policy_loss import DAPO, policy_loss
    from osim_kernels.rms_norm import rms_norm
    from osim_kernels.rope import rope, rope_tables
    from osim_kernels.swiglu import swiglu

`OSIM_KERNELS=packed_attention=reference,rms_norm=liger` overrides the choice for one run.
"""

from osim_kernels import (
    fused_linear_kl,
    fused_linear_logprob,
    packed_attention,
    policy_loss,
    registry,
    rms_norm,
    rope,
    swiglu,
)

__all__ = [
    "fused_linear_kl",
    "fused_linear_logprob",
    "packed_attention",
    "policy_loss",
    "registry",
    "rms_norm",
    "rope",
    "swiglu",
]
