"""Compile audit: every configuration a kernel may pick, compiled for sm_90a, against expectations and golden rows.

An op folder's audit.py declares CASES; golden.json beside it keeps what the compiler made of them, per Triton version.
A case fails when a kernel spills, multiplies in TF32, misses what its Expect asks for, or needs more registers or
shared memory, or allows fewer resident warps, than its golden row.
"""

import importlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import triton
from triton.runtime.errors import OutOfResources

from osim_kernels.proof import hopper, sass
from osim_kernels.proof.occupancy import SHARED_BYTES_PER_BLOCK, occupancy

KERNELS = Path(__file__).parent.parent
NOT_WORSE_HIGHER = ("registers", "shared_bytes")
NOT_WORSE_LOWER = ("warps_per_sm",)


@dataclass(frozen=True, kw_only=True)
class Expect:
    """What one kernel's machine code must show.

    wgmma             HGMMA, and neither HMMA nor TF32
    async_copy        TMA loads or cp.async
    wide              of global loads, and of stores, outside TMA and cp.async, at least a quarter of the bytes by
                      128-bit instructions (a fast path and its masked tail would have half each)
    warp_specialized  setmaxnreg: Triton drops a request for warp specialisation without a word
    Spills and TF32 are faults whatever is expected.
    """

    wgmma: bool = False
    async_copy: bool = False
    wide: bool = False
    warp_specialized: bool = False


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration of an op.

    name    unique within the op
    launch  allocates its tensors on hopper.DEVICE and calls the op; every kernel it launches is audited
    expect  kernel function's name -> Expect; must name exactly the kernels that are launched
    slow    only compiled with --slow
    """

    name: str
    launch: Callable[[], object]
    expect: dict[str, Expect]
    slow: bool = False


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel: what a golden row keeps. Loops are (instructions, stall cycles) of each main loop."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    warps: int
    stages: int
    blocks_per_sm: int
    warps_per_sm: int
    limiter: str
    counts: dict[str, int]
    loops: list[list[int]]


@dataclass
class Result:
    """One audited case; passes when `faults` is empty."""

    op: str
    case: str
    kernels: dict[str, Kernel] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def ops() -> list[str]:
    """Names of the op folders that have an audit.py."""
    return sorted(path.parent.name for path in KERNELS.glob("*/audit.py") if path.parent.name != "proof")


def cases(op: str) -> tuple[Case, ...]:
    """CASES of an op; ValueError if it has no audit.py."""
    if op not in ops():
        raise ValueError(f"no audit of op {op!r}; there are: {', '.join(ops()) or 'none'}")
    return importlib.import_module(f"osim_kernels.{op}.audit").CASES


def compiled(launch: hopper.Launch) -> Kernel:
    """Figures of a recorded launch."""
    used = sass.resources(launch.cubin)
    code = sass.instructions(launch.cubin)
    shared_bytes, warps = launch.metadata.shared, launch.metadata.num_warps
    resident = occupancy(used.registers, shared_bytes, warps)
    return Kernel(
        registers=used.registers,
        stack_bytes=used.stack_bytes,
        shared_bytes=shared_bytes,
        warps=warps,
        stages=launch.metadata.num_stages,
        blocks_per_sm=resident.blocks,
        warps_per_sm=resident.warps,
        limiter=resident.limiter,
        counts=sass.counts(code),
        loops=[[len(loop.instructions), loop.stalls] for loop in sass.main_loops(code)],
    )


def inventory(launch: Callable[[], object]) -> dict[str, Kernel]:
    """name -> figures of every different kernel that `launch` launches; a name's second variant is called name#2."""
    with hopper.recording() as launches:
        launch()
    found: dict[str, Kernel] = {}
    seen: set[bytes] = set()
    variants: dict[str, int] = {}
    for record in launches:
        if record.cubin not in seen:
            seen.add(record.cubin)
            variants[record.kernel] = number = variants.get(record.kernel, 0) + 1
            found[record.kernel if number == 1 else f"{record.kernel}#{number}"] = compiled(record)
    return found


def faults_of(name: str, kernel: Kernel, expect: Expect) -> Iterable[str]:
    """What is wrong with one kernel, without looking at golden rows."""
    count = kernel.counts
    if kernel.stack_bytes or count["ldl"] or count["stl"]:
        yield f"{name}: spills ({kernel.stack_bytes} bytes of stack, {count['ldl']} loads, {count['stl']} stores)"
    if count["tf32"]:
        yield f"{name}: {count['tf32']} tensor core products in TF32; pass input_precision='ieee' or 16-bit operands"
    if kernel.blocks_per_sm == 0:
        yield f"{name}: cannot start, {kernel.limiter}: {kernel.shared_bytes} bytes of {SHARED_BYTES_PER_BLOCK}"
    if expect.wgmma and (count["hgmma"] == 0 or count["hmma"]):
        yield f"{name}: expected wgmma, found {count['hgmma']} HGMMA, {count['hmma']} HMMA, {count['ffma']} FFMA"
    if expect.async_copy and count["utmaldg"] + count["ldgsts"] == 0:
        yield f"{name}: expected TMA or cp.async, found neither"
    if expect.wide:
        yield from _narrow_accesses(name, count)
    if expect.warp_specialized and count["usetmaxreg"] == 0:
        yield f"{name}: expected warp specialisation, found no setmaxnreg"


def _narrow_accesses(name: str, count: dict[str, int]) -> Iterable[str]:
    for opcode, what in (("ldg", "loads"), ("stg", "stores")):
        number = {width: count[f"{opcode}_{width}"] for width in (128, 64, 32, 16, 8)}
        if 4 * 128 * number[128] < sum(width * times for width, times in number.items()):
            seen = ", ".join(f"{times} of {width} bits" for width, times in number.items() if times)
            yield f"{name}: expected 128-bit global {what}, found {seen}"


def worse_than(name: str, kernel: Kernel, golden: dict) -> Iterable[str]:
    """In what a kernel is worse than its golden row."""
    for figure in NOT_WORSE_HIGHER:
        if getattr(kernel, figure) > golden[figure]:
            yield f"{name}: {figure} rose from {golden[figure]} to {getattr(kernel, figure)}"
    for figure in NOT_WORSE_LOWER:
        if getattr(kernel, figure) < golden[figure]:
            yield f"{name}: {figure} fell from {golden[figure]} to {getattr(kernel, figure)}"


def audit(op: str, case: Case, golden: dict) -> Result:
    """Compile one case and judge it. `golden` is the op's rows for this Triton, case -> kernel -> figures."""
    result = Result(op, case.name)
    try:
        result.kernels = inventory(case.launch)
    except OutOfResources as error:
        result.faults.append(f"cannot start: {error}")
        return result
    launched = {name.partition("#")[0] for name in result.kernels}
    for name in sorted(launched ^ set(case.expect)):
        result.faults.append(f"{name}: " + ("launched without an Expect" if name in launched else "never launched"))
    rows = golden.get(case.name, {})
    for name, kernel in result.kernels.items():
        result.faults += faults_of(name, kernel, case.expect.get(name.partition("#")[0], Expect()))
        if name in rows:
            result.faults += worse_than(name, kernel, rows[name])
        else:
            result.faults.append(f"{name}: no golden row for Triton {triton.__version__}; --update writes one")
    return result


def golden_path(op: str) -> Path:
    """The op's golden.json."""
    return KERNELS / op / "golden.json"


def golden_rows(op: str) -> dict:
    """case -> kernel -> figures, as recorded for the installed Triton; empty if never recorded."""
    path = golden_path(op)
    return json.loads(path.read_text()).get(triton.__version__, {}) if path.exists() else {}


def write_golden(op: str, results: list[Result]) -> None:
    """Replace the golden rows of these cases for the installed Triton; drop rows of cases that are gone."""
    path = golden_path(op)
    versions = json.loads(path.read_text()) if path.exists() else {}
    known = {case.name for case in cases(op)}
    rows = {name: row for name, row in versions.get(triton.__version__, {}).items() if name in known}
    rows |= {result.case: {name: asdict(kernel) for name, kernel in result.kernels.items()} for result in results}
    versions[triton.__version__] = dict(sorted(rows.items()))
    path.write_text(json.dumps(versions, indent=1) + "\n")
