"""What the machine code of a compiled kernel says: instruction counts, main loops, registers, stack.

Reads sm_90 cubins with the cuobjdump that ships inside Triton, so no CUDA toolkit is needed.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import triton

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

# /*0a30*/  @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;  /* 0x... */   and, on the next line, the upper half of its encoding
INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@!?U?P[T0-9]+\s+)?(?P<opcode>[A-Z][A-Z0-9_]*)(?P<modifiers>(?:\.\w+)*)"
    r"\s*(?P<operands>.*?);"
)
UPPER_HALF = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/\s*$")
RESOURCES = re.compile(r"\b(REG|STACK|SHARED|LOCAL):(\d+)")
STALL_SHIFT = 41  # of the upper 64 bits: cycles the scheduler waits after issuing, 4 bits


@dataclass(frozen=True)
class Instruction:
    """One SASS instruction; `stall` is the compiler's fixed wait after it, in cycles."""

    address: int
    opcode: str
    modifiers: tuple[str, ...]
    operands: str
    stall: int


@dataclass(frozen=True)
class Loop:
    """An innermost loop: addresses of its first and last instruction, and what lies between."""

    start: int
    stop: int
    instructions: tuple[Instruction, ...]

    def count(self, opcode: str) -> int:
        """How often the opcode stands in the loop."""
        return sum(instruction.opcode == opcode for instruction in self.instructions)

    @property
    def stalls(self) -> int:
        """Cycles one warp needs for one turn if every wait for memory or tensor cores took none."""
        return sum(instruction.stall for instruction in self.instructions)


@dataclass(frozen=True)
class Resources:
    """Registers of a thread and bytes of its stack (0 unless the compiler spilled or indexed a local array)."""

    registers: int
    stack_bytes: int


def resources(cubin: bytes) -> Resources:
    """Registers and stack of the one kernel in a cubin."""
    found = dict(RESOURCES.findall(_cuobjdump(cubin, "-res-usage")))
    return Resources(int(found["REG"]), int(found["STACK"]))


@cache
def instructions(cubin: bytes) -> tuple[Instruction, ...]:
    """The kernel's instructions in order."""
    return tuple(parse(_cuobjdump(cubin, "-sass")))


def parse(text: str) -> Iterator[Instruction]:
    """Instructions of a cuobjdump -sass listing."""
    pending = None
    for line in text.splitlines():
        if match := INSTRUCTION.match(line):
            pending = match
        elif pending is not None and (half := UPPER_HALF.match(line)):
            yield Instruction(
                address=int(pending["address"], 16),
                opcode=pending["opcode"],
                modifiers=tuple(pending["modifiers"].split(".")[1:]),
                operands=pending["operands"].strip(),
                stall=int(half[1], 16) >> STALL_SHIFT & 0xF,
            )
            pending = None


def counts(code: tuple[Instruction, ...]) -> dict[str, int]:
    """The counts an audit looks at; names are SASS opcodes in lower case, widths in bits.

    hgmma     warp-group tensor core products (wgmma); tf32: those of them, or of hmma, that read 10-bit mantissas
    hmma      products of the older, warp-wide instruction
    utmaldg, utmastg, utmaredg   TMA loads, stores, reductions
    ldgsts    asynchronous copies global to shared (cp.async)
    ldg, stg  global loads and stores, by width: ldg_128, ldg_64, ldg_32, ldg_16, ldg_8
    ldl, stl  local memory, that is spills
    usetmaxreg  registers handed between warp groups: warp specialisation
    """
    tally = Counter(instruction.opcode for instruction in code)
    rows = {
        "instructions": len(code),
        "hgmma": tally["HGMMA"] + tally["QGMMA"] + tally["IGMMA"],
        "hmma": tally["HMMA"],
        "tf32": sum(i.opcode in ("HGMMA", "HMMA") and "TF32" in i.modifiers for i in code),
        **{name.lower(): tally[name] for name in ("FFMA", "MUFU", "UTMALDG", "UTMASTG", "UTMAREDG", "LDGSTS")},
        **{name.lower(): tally[name] for name in ("LDL", "STL", "USETMAXREG")},
        "atomics": tally["ATOMG"] + tally["RED"] + tally["REDG"],
    }
    for opcode in ("LDG", "STG"):
        widths = Counter(_width(instruction) for instruction in code if instruction.opcode == opcode)
        rows |= {f"{opcode.lower()}_{width}": widths[width] for width in (128, 64, 32, 16, 8)}
    return rows


def main_loops(code: tuple[Instruction, ...]) -> list[Loop]:
    """Innermost loops that hold tensor core products, or, in a kernel without them, the longest innermost loop.

    A backward branch ends a loop, except the two-instruction retry of an mbarrier wait.
    """
    position = {instruction.address: index for index, instruction in enumerate(code)}
    spans = set()
    for index, instruction in enumerate(code):
        if instruction.opcode != "BRA":
            continue
        target = re.findall(r"0x([0-9a-f]+)", instruction.operands)
        retry = any(i.opcode == "SYNCS" and "TRYWAIT" in i.modifiers for i in code[max(0, index - 3) : index])
        if target and int(target[-1], 16) < instruction.address and not retry:
            spans.add((position[int(target[-1], 16)], index))
    inner: list[tuple[int, int]] = []
    holds_product = {span for span in spans if any(_is_product(i) for i in code[span[0] : span[1] + 1])}
    for start, stop in sorted(holds_product or spans, key=lambda span: span[1] - span[0]):
        if all(stop < other_start or other_stop < start for other_start, other_stop in inner):
            inner.append((start, stop))
    loops = [Loop(code[a].address, code[b].address, code[a : b + 1]) for a, b in sorted(inner)]
    return loops if holds_product else sorted(loops, key=lambda loop: len(loop.instructions))[-1:]


def _is_product(instruction: Instruction) -> bool:
    return instruction.opcode in ("HGMMA", "QGMMA", "IGMMA", "HMMA")


def _width(instruction: Instruction) -> int:
    for width in (128, 64):
        if str(width) in instruction.modifiers:
            return width
    for bits in (16, 8):
        if {f"U{bits}", f"S{bits}"} & set(instruction.modifiers):
            return bits
    return 32


def _cuobjdump(cubin: bytes, flag: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([CUOBJDUMP, flag, file.name], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
