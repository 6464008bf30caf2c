"""Resident blocks of a kernel on one H100 SM, from registers, shared memory and warps.

The rules of NVIDIA's cuda_occupancy.h for compute capability 9.0 (limits: CUDA C++ Programming Guide, "Technical
Specifications per Compute Capability"): a warp's registers are allocated in units of 256 out of one of four register
files of 16,384; a block's shared memory in units of 128 bytes, 1 KiB of it for the system.
"""

from dataclasses import dataclass

STREAMING_MULTIPROCESSORS = 132  # H100 SXM
REGISTERS = 65_536
SHARED_BYTES = 228 * 1024
SHARED_BYTES_PER_BLOCK = 227 * 1024
WARPS = 64
BLOCKS = 32

QUARTERS = 4
REGISTER_UNIT = 256
SHARED_UNIT = 128
SHARED_RESERVED = 1024


@dataclass(frozen=True)
class Occupancy:
    """blocks resident per SM (0: the kernel cannot start), their warps, and what stops more."""

    blocks: int
    warps: int
    limiter: str


def occupancy(registers: int, shared_bytes: int, warps: int) -> Occupancy:
    """Occupancy of a block of `warps` warps, each thread holding `registers`, with `shared_bytes` of shared memory."""
    if shared_bytes > SHARED_BYTES_PER_BLOCK:
        return Occupancy(0, 0, "shared memory")
    per_warp = max(1, _up(registers * 32, REGISTER_UNIT))
    resident_warps = QUARTERS * (REGISTERS // QUARTERS // per_warp)
    limits = {
        "blocks": BLOCKS,  # the first of equals is named
        "warps": WARPS // warps,
        "shared memory": SHARED_BYTES // _up(shared_bytes + SHARED_RESERVED, SHARED_UNIT),
        "registers": resident_warps // warps,
    }
    limiter = min(limits, key=limits.get)
    return Occupancy(limits[limiter], limits[limiter] * warps, limiter)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
