"""The compile audit: the package's kernels pass it, and it catches planted faults. Runs without TRITON_INTERPRET, in
processes of their own, because Triton reads that variable when a kernel is defined."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from osim_kernels.proof import Expect, audit, occupancy, roofline, sass

ROOT = Path(__file__).parents[2]


def compiled_apart(*arguments, timeout=540):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "triton")
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["default", "slow"])
def test_every_configuration_compiles_as_its_golden_row_says(slow):
    done = compiled_apart("-m", "osim_kernels.proof", *(["--slow"] if slow else []), timeout=1500 if slow else 540)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


# planted faults

AUDIT_CASES = """
import json, sys
from dataclasses import asdict
from osim_kernels.proof import audit
from tests.support.triton_kernels import CASES
results = [audit.audit("support", case, {}) for case in CASES]
print(json.dumps({result.case: asdict(result) for result in results}))
"""


@pytest.fixture(scope="module")
def planted():
    done = compiled_apart("-c", AUDIT_CASES)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    for result in results.values():
        result["faults"] = [fault for fault in result["faults"] if "no golden row" not in fault]
    return results


@pytest.mark.parametrize("name", ["sound", "descriptors", "autotuned"])
def test_sound_kernels_have_no_faults(planted, name):
    assert planted[name]["faults"] == [] and planted[name]["kernels"]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("fp32 operands", "products in TF32"),
        ("too many stages", "cannot start: out of resource: shared memory, Required: 262144, Hardware limit: 232448"),
        ("4 warps on a tile for 8", "matmul_kernel: spills"),
        ("strided loads", "expected 128-bit global loads"),
        ("other kernel named", "tuned_double_kernel: launched without an Expect"),
        ("other kernel named", "other_kernel: never launched"),
        ("no warp specialisation", "found no setmaxnreg"),
    ],
)
def test_a_planted_fault_is_caught(planted, name, fault):
    assert any(fault in found for found in planted[name]["faults"]), planted[name]["faults"]


def test_figures_of_the_sound_kernel(planted):
    kernel = planted["sound"]["kernels"]["matmul_kernel"]
    assert kernel["warps"] == 8 and kernel["stages"] == 3
    assert kernel["shared_bytes"] == 3 * 2 * (128 * 64 + 64 * 128)
    assert kernel["counts"]["hgmma"] >= 4 and kernel["counts"]["ldgsts"] > 0 and kernel["counts"]["hmma"] == 0
    assert len(kernel["loops"]) == 1 and 0 < kernel["loops"][0][0] < kernel["counts"]["instructions"]


def test_descriptors_use_tma_and_autotune_records_every_configuration(planted):
    count = planted["descriptors"]["kernels"]["descriptor_matmul_kernel"]["counts"]
    assert count["utmaldg"] >= 2 and count["utmastg"] >= 1 and count["ldgsts"] == 0
    assert set(planted["autotuned"]["kernels"]) == {"tuned_double_kernel", "tuned_double_kernel#2"}


def test_compiling_for_the_absent_card_refuses_the_interpreter():
    from osim_kernels.proof import hopper

    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"), hopper.recording():
        pass


# judging, without a compiler


def kernel(**changes):
    zero = dict.fromkeys(sass.counts(()), 0)
    figures = {
        "registers": 128, "stack_bytes": 0, "shared_bytes": 1024, "warps": 4, "stages": 2,
        "blocks_per_sm": 4, "warps_per_sm": 16, "limiter": "registers", "loops": [],
    }  # fmt: skip
    figures |= {name: value for name, value in changes.items() if name in figures}
    counts = zero | {name: value for name, value in changes.items() if name not in figures}
    return audit.Kernel(**figures, counts=counts)


@pytest.mark.parametrize(
    ("changes", "expect", "fault"),
    [
        ({"ldl": 1}, {}, "spills"),
        ({"stack_bytes": 8}, {}, "spills"),
        ({"hgmma": 4, "tf32": 4}, {"wgmma": True}, "TF32"),
        ({"blocks_per_sm": 0, "limiter": "shared memory"}, {}, "cannot start"),
        ({"hmma": 4}, {"wgmma": True}, "expected wgmma"),
        ({"hgmma": 4, "hmma": 1}, {"wgmma": True}, "expected wgmma"),
        ({}, {"async_copy": True}, "TMA or cp.async"),
        ({"ldg_32": 13, "ldg_128": 1}, {"wide": True}, "13 of 32 bits"),
        ({"stg_16": 25, "stg_128": 1, "ldg_128": 9}, {"wide": True}, "stores, found 1 of 128 bits, 25 of 16 bits"),
        ({}, {"warp_specialized": True}, "setmaxnreg"),
    ],
)
def test_each_rule_fires_alone(changes, expect, fault):
    found = list(audit.faults_of("k", kernel(**changes), Expect(**expect)))
    assert len(found) == 1 and fault in found[0]


def test_what_is_asked_for_passes():
    good = kernel(hgmma=8, utmaldg=2, ldg_32=3, ldg_128=1, stg_128=2, usetmaxreg=2)
    assert not list(audit.faults_of("k", good, Expect(wgmma=True, async_copy=True, wide=True, warp_specialized=True)))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"registers": 129}, "registers rose from 128 to 129"),
        ({"shared_bytes": 1025}, "shared_bytes rose"),
        ({"warps_per_sm": 12}, "warps_per_sm fell from 16 to 12"),
    ],
)
def test_worse_than_golden_fails_and_better_passes(changes, fault):
    golden = asdict(kernel())
    assert fault in next(iter(audit.worse_than("k", kernel(**changes), golden)))
    assert not list(audit.worse_than("k", kernel(registers=100, shared_bytes=0, warps_per_sm=20), golden))


def test_unknown_op_is_refused():
    with pytest.raises(ValueError, match="no audit of op 'nonsense'"):
        audit.cases("nonsense")


@pytest.mark.parametrize(
    ("registers", "shared_bytes", "warps", "blocks", "limiter"),
    [  # values of NVIDIA's cuda_occupancy.h for compute capability 9.0
        (32, 0, 4, 16, "warps"),
        (16, 0, 1, 32, "blocks"),
        (255, 0, 8, 1, "registers"),
        (168, 82_616, 12, 1, "registers"),
        (128, 40_960, 4, 4, "registers"),
        (64, 100_000, 4, 2, "shared memory"),
        (24, 0, 32, 2, "warps"),
        (64, 232_449, 4, 0, "shared memory"),
    ],
)
def test_occupancy(registers, shared_bytes, warps, blocks, limiter):
    found = occupancy.occupancy(registers, shared_bytes, warps)
    assert (found.blocks, found.limiter, found.warps) == (blocks, limiter, blocks * warps)


NVIDIA = Path("/usr/local/cuda/include/cuda_occupancy.h")
GRID = list(
    itertools.product((16, 32, 40, 96, 128, 168, 200, 255), (0, 1024, 40_960, 99_001, 232_448), (1, 4, 5, 8, 12, 32))
)
PROGRAM = """
#include <cstdio>
#include <cstddef>
#include <cuda_occupancy.h>
int main() {
  cudaOccDeviceProp card;
  card.computeMajor = 9; card.computeMinor = 0;
  card.maxThreadsPerBlock = 1024; card.maxThreadsPerMultiprocessor = 2048;
  card.regsPerBlock = 65536; card.regsPerMultiprocessor = 65536; card.warpSize = 32;
  card.sharedMemPerBlock = 49152; card.sharedMemPerBlockOptin = 232448; card.sharedMemPerMultiprocessor = 233472;
  card.reservedSharedMemPerBlock = 1024; card.numSms = 132;
  int registers, shared, warps;
  while (std::scanf("%d %d %d", &registers, &shared, &warps) == 3) {
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024; kernel.numRegs = registers; kernel.sharedSizeBytes = 0;
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF; kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = 232448; kernel.numBlockBarriers = 1;
    cudaOccDeviceState state; state.cacheConfig = CACHE_PREFER_SHARED;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &card, &kernel, &state, warps * 32, shared);
    std::printf("%d\\n", error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -1);
  }
}
"""


@pytest.mark.skipif(not (NVIDIA.exists() and shutil.which("g++")), reason="needs cuda_occupancy.h and g++")
def test_occupancy_is_what_nvidias_header_says(tmp_path):
    (tmp_path / "occupancy.cpp").write_text(PROGRAM)
    command = ["g++", "-w", "-I", NVIDIA.parent, "occupancy.cpp", "-o", "occupancy"]
    subprocess.run(command, cwd=tmp_path, check=True)
    text = "\n".join(" ".join(map(str, case)) for case in GRID)
    done = subprocess.run([tmp_path / "occupancy"], input=text, capture_output=True, text=True, check=True)
    wrong = [
        (case, int(theirs), occupancy.occupancy(*case).blocks)
        for case, theirs in zip(GRID, done.stdout.split(), strict=True)
        if int(theirs) != occupancy.occupancy(*case).blocks
    ]
    assert wrong == []


LISTING = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;                 /* 0x00000a00ff017b82 */
                                                                          /* 0x000fe20000000800 */
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;       /* 0x0000000402047981 */
                                                                          /* 0x000ea8000c1e1d00 */
        /*0020*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ; /* 0x01e00000041879f0 */
                                                                          /* 0x000fe60008701818 */
        /*0030*/              @!P0 MUFU.EX2 R5, R5 ;                      /* 0x0000000500058308 */
                                                                          /* 0x000e620000000800 */
        /*0040*/               @P0 BRA 0x20 ;                             /* 0xfffffffc00fc0947 */
                                                                          /* 0x000fea000383ffff */
        /*0050*/                   STG.E.U16 desc[UR4][R2.64], R0 ;       /* 0x0000000002007986 */
                                                                          /* 0x000fe2000c101504 */
"""


def test_reading_machine_code():
    code = tuple(sass.parse(LISTING))
    assert [instruction.opcode for instruction in code] == ["LDC", "LDG", "HGMMA", "MUFU", "BRA", "STG"]
    count = sass.counts(code)
    assert (count["ldg_128"], count["stg_16"], count["hgmma"], count["mufu"]) == (1, 1, 1, 1)
    (loop,) = sass.main_loops(code)
    assert (loop.start, loop.stop, loop.count("HGMMA")) == (0x20, 0x40, 1)
    assert [instruction.stall for instruction in code] == [1, 4, 3, 1, 5, 1] and loop.stalls == 9


def test_roofline_and_loop_bracket():
    estimate = roofline.roofline(989e12, 3.35e9)
    assert (estimate.seconds, estimate.bound) == (1.0, "compute") and estimate.memory_s == pytest.approx(1e-3)
    assert roofline.roofline(67e9, 3.35e12, "fp32").bound == "memory"
    (loop,) = sass.main_loops(tuple(sass.parse(LISTING)))
    bracket = roofline.loop_bracket(loop, warps=8)  # 2 warp groups x 64 cycles of products each
    assert bracket.serial == pytest.approx(128 / (128 + 9)) and bracket.overlapped == 1.0
    with pytest.raises(ValueError, match="fp4"):
        roofline.roofline(1, 1, "fp4")
