"""Proof of Triton kernels without a GPU: run them bit-correct on the CPU, watch their memory, read their machine code.

    interpreter  bfloat16 and TF32 as the hardware has them
    sanitizer    out-of-bounds, uninitialised reads and races between programs
    hopper       ordinary launches through the real compiler for an H100 that is not there
    sass, occupancy, roofline   what the compiled code says
    audit        cases, expectations and golden rows; `python -m osim_kernels.proof`

Nothing here is imported by the kernels themselves, and nothing here touches a GPU.
"""

from osim_kernels.proof.audit import Case, Expect

__all__ = ["Case", "Expect"]
