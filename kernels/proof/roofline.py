"""Stated estimates from counts: a roofline for an op, and a bracket for a main loop. Targets, never measurements.

Assumptions, H100 SXM5 data sheet: 989 TFLOP/s dense bf16 and fp16, 67 TFLOP/s fp32, 3.35 TB/s of HBM3. The roofline
(Williams, Waterman, Patterson 2009) takes the larger of the time for the arithmetic and the time for the bytes, as if
the two overlapped entirely and every byte moved once; launches, tails and cache misses are outside it.
"""

import re
from dataclasses import dataclass

from osim_kernels.proof.sass import Loop

PEAK_FLOPS = {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12}  # per second
MEMORY = 3.35e12  # bytes per second
MULTIPLY_ADDS = 2048  # of bf16, per cycle and SM, in the tensor cores
# Cycles for which one warp's instruction occupies its unit; the others take one issue slot.
SLOW = {"MUFU": 8, "SHFL": 4, "F2FP": 2, "F2F": 8, "F2I": 8, "I2F": 8, "R2UR": 2}


@dataclass(frozen=True)
class Estimate:
    """seconds: the larger of compute_s and memory_s; bound: which of them it is."""

    compute_s: float
    memory_s: float

    @property
    def seconds(self) -> float:
        return max(self.compute_s, self.memory_s)

    @property
    def bound(self) -> str:
        return "compute" if self.compute_s >= self.memory_s else "memory"


def roofline(flops: float, moved_bytes: float, dtype: str = "bf16") -> Estimate:
    """The least time an H100 SXM needs for these FLOPs (a multiply-add is two) and these bytes of HBM traffic.

    Raises ValueError for a dtype without a stated peak.
    """
    if dtype not in PEAK_FLOPS:
        raise ValueError(f"no stated peak for {dtype!r}; there are: {', '.join(PEAK_FLOPS)}")
    return Estimate(flops / PEAK_FLOPS[dtype], moved_bytes / MEMORY)


@dataclass(frozen=True)
class LoopBracket:
    """Share of the tensor cores' peak that a main loop can reach: `serial` if nothing overlaps with the products,
    `overlapped` if everything does. Uncalibrated, memory waits excluded: good for comparing, not for quoting."""

    serial: float
    overlapped: float


def loop_bracket(loop: Loop, warps: int) -> LoopBracket:
    """Bracket of a loop that `warps` warps of one block run together. Raises ValueError if it holds no HGMMA."""
    shapes = [
        [int(size) for size in re.fullmatch(r"(\d+)x(\d+)x(\d+)", instruction.modifiers[0]).groups()]
        for instruction in loop.instructions
        if instruction.opcode == "HGMMA"
    ]
    if not shapes:
        raise ValueError("loop_bracket: the loop holds no HGMMA")
    groups = warps / 4  # of four warps, one on each quarter of the SM
    tensor = groups * sum(m * n * k for m, n, k in shapes) / MULTIPLY_ADDS
    issue = groups * len(loop.instructions)
    slow = groups * sum(SLOW.get(instruction.opcode, 0) for instruction in loop.instructions)
    return LoopBracket(serial=tensor / (tensor + loop.stalls), overlapped=tensor / max(tensor, issue, slow))
