"""What nvcc makes of the sketch kernels for A100 and H100: nothing spilled, the lanes' loop at its known length."""

import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import dedup_cuda
from osim_kernels.proof import nvcc

CSRC = Path(__file__).parent.parent.parent / "csrc"
MODULE = find_spec("osim_core._cuda")
# Registers and bytes of shared memory as nvcc 13.0 has them, and resident warps of an H100 SM: no worse, give or take
# what another nvcc may need.
GOLDEN = {"sketch_kernelILb0E": (56, 10_240, 36), "sketch_kernelILb1E": (69, 43_008, 20)}
SLACK_REGISTERS = 8


def compiled(path: Path, architecture: str, name: str) -> nvcc.Kernel:
    (kernel,) = (kernel for kernel in nvcc.kernels(path, architecture) if name in kernel.name)
    return kernel


@pytest.mark.skipif(MODULE is None, reason="osim_core._cuda is not built here (no nvcc at set-up)")
@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_the_kernels_keep_their_lanes_in_registers_and_load_128_bits(name, architecture):
    kernel = compiled(Path(MODULE.origin), architecture, name)
    registers, shared_bytes, warps = GOLDEN[name]
    assert not kernel.spills
    assert kernel.resources.registers <= registers + SLACK_REGISTERS and kernel.shared_bytes <= shared_bytes
    assert kernel.occupancy(warps=4).warps >= warps
    assert kernel.count("LDG", "128") >= 1 and kernel.count("STS", "128") >= 1
    loop = kernel.loop_around("VIMNMX3" if architecture == "sm_90a" else "IMNMX")
    # Four shingles on four lanes of a thread: a flip and a multiplication each; Hopper takes two minima at once.
    assert loop.count("LOP3") == 16 and 16 <= loop.count("IMAD") <= 18
    assert loop.count("VIMNMX3") == 8 if architecture == "sm_90a" else loop.count("IMNMX") == 16
    assert [i.modifiers for i in loop.instructions if i.opcode.startswith("LD")] == [("128",)]
    assert len(loop.instructions) <= (48 if architecture == "sm_90a" else 56)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_a_planted_spill_is_seen(tmp_path):
    """Room for 16 blocks on an SM leaves a thread 32 registers."""
    shutil.copytree(CSRC, tmp_path / "csrc")
    source = tmp_path / "csrc/cuda/dedup/sketch.cu"
    text = source.read_text()
    assert text.count("__launch_bounds__(kWarps * kWarp)") == 1
    source.write_text(text.replace("__launch_bounds__(kWarps * kWarp)", "__launch_bounds__(kWarps * kWarp, 16)"))
    cubin = tmp_path / "sketch.cubin"
    subprocess.run(["nvcc", "-std=c++17", "-O3", "-arch=sm_90a", "-cubin", source, "-o", cubin], check=True)
    kernel = compiled(cubin, "sm_90a", "sketch_kernelILb0E")
    assert kernel.spills and kernel.resources.registers == 32


def test_cycles_of_the_loop_are_counted_by_pipe():
    code = [nvcc.Instruction(0, name, (), "", 1) for name in ["LDS"] + ["LOP3"] * 4 + ["IMAD"] * 4 + ["VIMNMX3"] * 2]
    assert nvcc.issue_cycles(tuple(code)) == {"issue": 11.0, "multiply": 8.0, "integer": 12.0}


@pytest.mark.skipif(MODULE is None, reason="osim_core._cuda is not built here (no nvcc at set-up)")
def test_the_offline_report_states_its_ceilings_as_targets(tmp_path):
    dedup_cuda.offline([f"the {n} quick brown foxes jump over a lazy dog " * 9 for n in range(40)], tmp_path / "rows")
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert [row["case"]["architecture"] for row in rows] == ["sm_90a", "sm_90a", "sm_80", "sm_80"]
    assert {row["case"]["rung"] for row in rows} == {"target"}
    short = next(row["result"] for row in rows if row["case"]["kernel"] == "short texts")
    # 16 flips, 8 minima and 2 for the loop take two cycles each of 132 x 4 quarters for four shingles on 128 lanes.
    assert short["loop_cycles_integer"] == 52
    assert short["lane_shingles_per_second"] == pytest.approx(132 * 4 * 1.755e9 * 512 / 52)
    assert 55e9 < short["text_bytes_per_second"] < short["lane_shingles_per_second"] / 128 * 6.4
