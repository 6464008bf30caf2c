"""SwiGLU on a concatenated gate and up projection.

from osim_kernels.swiglu import swiglu
hidden = swiglu(gate_up)
"""

import torch

from osim_kernels.registry import Implementation, Op, anywhere, needs_cuda

__all__ = ["swiglu"]


def _load_liger():
    from osim_kernels.swiglu.liger import swiglu_liger

    return swiglu_liger


def _load_reference():
    from osim_kernels.swiglu.reference import swiglu_reference

    return swiglu_reference


_op = Op(
    "swiglu",
    Implementation(name="liger", load=_load_liger, refuses=needs_cuda),
    Implementation(name="reference", load=_load_reference, refuses=anywhere),
)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, where gate is the first half of the last dimension and up the second.

    gate_up  [..., 2 F] fp32, bf16 or fp16

    Returns [..., F] in the same dtype. Differentiable. Method: Shazeer 2020.
    """
    assert gate_up.shape[-1] % 2 == 0, gate_up.shape
    return _op.select(gate_up.device, gate_up.dtype)(gate_up)
