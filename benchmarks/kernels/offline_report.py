"""The offline report: what the compiler makes of our kernels and the peers' for an H100, and what a roofline allows.

Every kernel is compiled by the installed Triton through osim_kernels.proof.hopper. Figures are facts about machine
code, except the roofline, which is an estimate from stated FLOPs and bytes. None of it is a speed.
"""

import re
from dataclasses import dataclass
from types import ModuleType

from rich.table import Table

from osim_kernels.proof import audit, hopper, roofline, sass

RUNG = "offline estimate"
COUNTS = ("hgmma", "hmma", "utmaldg", "utmastg", "ldgsts", "ldg_128", "stg_128", "ldl", "stl", "usetmaxreg", "ffma")


@dataclass(frozen=True)
class Work:
    """FLOPs (a multiply-add is two) and bytes of HBM traffic of one tile's inner step and of one whole call."""

    shape: str
    flops: float
    moved_bytes: float
    tile_flops: float
    tile_bytes: float
    dtype: str = "bf16"


def rows(op: str, module: ModuleType) -> list[tuple[dict, dict]]:
    """(case, result) of the op's default audit cases, the peers' kernels, and the op's roofline.

    module offers `work()` -> {direction: Work} and `offline_peers()` -> {name: launch}.
    """
    found = []
    for case in audit.cases(op):
        if not case.slow:
            found += _kernels(op, "osim", case.name, case.launch)
    for peer, launch in module.offline_peers().items():
        found += _kernels(op, peer, "", launch)
    for direction, work in module.work().items():
        estimate = roofline.roofline(work.flops, work.moved_bytes, work.dtype)
        result = {
            "rung": RUNG,
            "flops": work.flops,
            "hbm_bytes": work.moved_bytes,
            "tile_flops": work.tile_flops,
            "tile_bytes": work.tile_bytes,
            "roofline_s": estimate.seconds,
            "bound": estimate.bound,
        }
        case = {"kind": "roofline", "op": op, "direction": direction, "shape": work.shape}
        found.append((case | {"dtype": work.dtype}, result))
    return found


def _kernels(op: str, owner: str, name: str, launch) -> list[tuple[dict, dict]]:
    with hopper.recording() as launches:
        launch()
    found = []
    for record in {record.cubin: record for record in launches}.values():
        kernel = audit.compiled(record)
        result = {
            "rung": RUNG,
            "registers": kernel.registers,
            "warps": kernel.warps,
            "shared_bytes": kernel.shared_bytes,
            "stack_bytes": kernel.stack_bytes,
            "blocks_per_sm": kernel.blocks_per_sm,
            "limiter": kernel.limiter,
            **{count: kernel.counts[count] for count in COUNTS},
        }
        brackets = [
            roofline.loop_bracket(loop, 4 if kernel.counts["usetmaxreg"] else kernel.warps)
            for loop in sass.main_loops(sass.instructions(record.cubin))
            if loop.count("HGMMA")
        ]
        if brackets:
            result["loop_peak_share"] = [[round(b.serial, 3), round(b.overlapped, 3)] for b in brackets]
        case = {"kind": "kernel", "op": op, "owner": owner, "variant": name, "kernel": record.kernel}
        found.append((case | {"dtype": _operand(record.signature)}, result))
    return found


def _operand(signature: dict) -> str:
    """Element type of a kernel's first tensor ("*bf16", "tensordesc<bf16[128, 64]...>")."""
    types = (re.match(r"(?:\*|tensordesc<)([a-z]+\d+)", kind) for kind in signature.values() if isinstance(kind, str))
    return next((match[1] for match in types if match), "none")


def tables(rows: list[tuple[dict, dict]]) -> list[Table]:
    """The kernels side by side, and the rooflines."""
    columns = ("op", "whose", "kernel", "regs x warps", "shared", "spill ld/st", "blocks/SM", "HGMMA", "HMMA")
    kernels = Table(*columns, "TMA ld/st", "cp.async", title="compiled for an H100, not run")
    columns = ("op", "direction", "shape", "FLOP", "HBM bytes", "FLOP / tile step", "bytes / tile step", "bound")
    rooflines = Table(
        *columns, "least ms", title="roofline, an estimate from stated peaks (osim_kernels.proof.roofline)"
    )
    for case, result in rows:
        if case["kind"] == "kernel":
            kernels.add_row(
                case["op"],
                f"{case['owner']} {case['variant']}",
                case["kernel"],
                f"{result['registers']} x {result['warps']}",
                f"{result['shared_bytes']:,}",
                f"{result['ldl']}/{result['stl']}",
                f"{result['blocks_per_sm']} ({result['limiter']})",
                *(str(result[name]) for name in ("hgmma", "hmma")),
                f"{result['utmaldg']}/{result['utmastg']}",
                str(result["ldgsts"]),
            )
        else:
            numbers = (f"{result[name]:.3g}" for name in ("flops", "hbm_bytes", "tile_flops", "tile_bytes"))
            least = f"{result['roofline_s'] * 1e3:.3g}"
            rooflines.add_row(case["op"], case["direction"], case["shape"], *numbers, result["bound"], least)
    return [kernels, rooflines]
