"""Kernels in a module or cubin that nvcc built: registers, stack, shared memory and machine code of each, by name.

    for kernel in kernels(Path(osim_core._cuda.__file__), "sm_90a"):
        kernel.resources, kernel.occupancy(warps=4), kernel.loop_around("VIMNMX3")

The counterpart of audit.compiled for CUDA C++; reads with the cuobjdump that ships inside Triton, as sass.py does.
"""

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from osim_kernels.proof.occupancy import SHARED_RESERVED, Occupancy, occupancy
from osim_kernels.proof.sass import CUOBJDUMP, Instruction, Loop, Resources, parse

USAGE = re.compile(r"\bREG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Kernel:
    """One kernel; `name` is mangled, `shared_bytes` are its own, without what CUDA reserves."""

    name: str
    resources: Resources
    shared_bytes: int
    local_bytes: int
    code: tuple[Instruction, ...]

    def count(self, opcode: str, *modifiers: str) -> int:
        """How often the opcode stands in the code, with at least these modifiers."""
        return sum(i.opcode == opcode and set(modifiers) <= set(i.modifiers) for i in self.code)

    @property
    def spills(self) -> bool:
        """Whether anything lives in local memory."""
        return bool(self.resources.stack_bytes or self.local_bytes or self.count("LDL") or self.count("STL"))

    def occupancy(self, warps: int) -> Occupancy:
        """Resident blocks of so many warps on an H100 SM."""
        return occupancy(self.resources.registers, self.shared_bytes, warps)

    def loop_around(self, opcode: str) -> Loop:
        """The shortest loop that holds this opcode. Raises ValueError if none does."""
        position = {instruction.address: index for index, instruction in enumerate(self.code)}
        found = []
        for stop, branch in enumerate(self.code):
            target = re.findall(r"0x([0-9a-f]+)", branch.operands) if branch.opcode == "BRA" else []
            start = position.get(int(target[-1], 16), stop) if target else stop
            body = self.code[start : stop + 1]
            if start < stop and any(instruction.opcode == opcode for instruction in body):
                found.append(Loop(self.code[start].address, branch.address, body))
        if not found:
            raise ValueError(f"{self.name}: no loop holds {opcode}")
        return min(found, key=lambda loop: len(loop.instructions))


@cache
def kernels(path: Path, architecture: str) -> tuple[Kernel, ...]:
    """The kernels compiled for an architecture such as sm_90a. Raises ValueError if there are none."""
    usage = _by_function(_cuobjdump(path, architecture, "-res-usage"))
    listings = _by_function(_cuobjdump(path, architecture, "-sass"))
    found = []
    for name, listing in listings.items():
        registers, stack, shared, local = map(int, USAGE.search(usage[name]).groups())
        reserved = SHARED_RESERVED if int(re.search(r"\d+", architecture)[0]) >= 90 else 0
        code = tuple(parse(listing))
        found.append(Kernel(name, Resources(registers, stack), shared - reserved, local, code))
    if not found:
        raise ValueError(f"{path}: no kernel for {architecture}")
    return tuple(found)


def _by_function(text: str) -> dict[str, str]:
    """Name -> what stands below it, up to the next one."""
    _, *pieces = re.split(r"^\s*Function\s*:?\s*(\S+?):?$", text, flags=re.MULTILINE)
    return dict(zip(pieces[::2], pieces[1::2], strict=True))


def issue_cycles(instructions: tuple[Instruction, ...]) -> dict[str, float]:
    """Cycles in which one SM quarter issues these instructions for one warp, if nothing else bounds it: by the issue
    slot (one a cycle), and by the two pipes of 16 lanes that share integer work (two cycles an instruction).

    Assumptions for compute capability 9.0 (CUDA C++ Programming Guide, "Arithmetic Instructions": 64 results a cycle
    and SM of 32-bit integer multiply-add, of logic, and of minimum): IMAD on one pipe; LOP3, VIMNMX and the other
    integer instructions on the other. Unverified on a GPU.
    """
    tally = Counter(instruction.opcode for instruction in instructions)
    multiply = tally["IMAD"] + tally["FFMA"]
    elsewhere = sum(tally[name] for name in ("LDS", "STS", "LDG", "STG", "BRA", "BSYNC", "BSSY", "SHFL", "NOP", "S2R"))
    return {
        "issue": float(len(instructions)),
        "multiply": 2.0 * multiply,
        "integer": 2.0 * (len(instructions) - multiply - elsewhere),
    }


def _cuobjdump(path: Path, architecture: str, flag: str) -> str:
    command = [CUOBJDUMP, "-arch", architecture, flag, path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
