"""The ledger: one JSON line per measured case, with everything needed to judge or repeat it.

    record("packing", case={"capacity": 2048, "dtype": "int32"}, result={"padding": 1e-4, **quantiles(seconds)})

appends to benchmarks/results/packing.jsonl. A row carries the hardware, the versions and the commit it was measured
on; `case` carries dtype and shape, `result` the figures. Rows are only ever appended: a slower new row is a finding.
"""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "triton", "megatron-core", "transformers", "liger-kernel", "transformer-engine", "numpy")


def record(op: str, case: dict[str, Any], result: dict[str, Any], out: Path | None = None) -> dict[str, Any]:
    """Append one row and return it.

    op      names the file, benchmarks/results/<op>.jsonl, unless `out` names another
    case    what was run: implementation, dtype, shape, settings
    result  figures with their unit in the name; timings through `quantiles`
    Raises ValueError if a value is not JSON (NaN and infinity are not).
    """
    row = {
        "op": op,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **commit(),
        "hardware": hardware(),
        "versions": versions(),
        "case": case,
        "result": result,
    }
    try:
        line = json.dumps(row, allow_nan=False) + "\n"
    except TypeError as error:
        raise ValueError(f"benchmark row of {op}: {error}; pass plain numbers and strings") from error
    path = RESULTS / f"{op}.jsonl" if out is None else Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(line)  # one write, so that a killed benchmark leaves whole rows
    return row


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """20th, 50th and 80th percentile of repeated timings of one case, in seconds."""
    if not len(seconds):
        raise ValueError("quantiles: no timings given")
    p20, p50, p80 = np.percentile(np.asarray(seconds, dtype=np.float64), (20, 50, 80))
    return {"p20_s": float(p20), "p50_s": float(p50), "p80_s": float(p80), "runs": len(seconds)}


def hardware() -> dict[str, Any]:
    """CPU model, cores this process may use, and the first GPU's name, or None without one."""
    import torch  # seconds to import, and only a measured row needs it

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {"cpu": _cpu_model(), "cores": len(os.sched_getaffinity(0)), "gpu": gpu}


def versions() -> dict[str, str]:
    """Python and the installed ones of PACKAGES."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # an absent package took no part in the measurement
    return found


def commit() -> dict[str, Any]:
    """Commit of the checkout and whether tracked files differ from it; None, None outside a checkout.

    The ledger's own new rows do not count: the second row of a run would otherwise call the first one a change.
    """
    head = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "-uno", "--", ".", f":!{RESULTS.relative_to(ROOT)}")
    return {"commit": head, "dirty": None if head is None else bool(changed)}


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()  # ARM kernels list no model name
