"""The CUDA form of judge scoring: its device text, run here by emulated blocks in random order under g++'s sanitizers,
equals the definition; planted faults are caught; nvcc's code for sm_90a spills nothing and loads 128 bits at a time."""

import math
import re
import shutil
import struct
import subprocess
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from osim_kernels.judge_score import JudgeScores
from osim_kernels.judge_score import _op as judge_score_op
from osim_kernels.judge_score.anchors import anchors_if_needed
from osim_kernels.judge_score.cuda import (
    KINDS,
    TILE_EDGES,
    edge_tiles,
    group_advantages_cuda,
    judge_score_cuda,
    table_arguments,
)
from osim_kernels.judge_score.tables import label_tables
from osim_kernels.proof import sass
from tests.support.judges import RUBRICS, ask, assert_scores_close, by_hand, groups_by_hand

CSRC = Path(__file__).parent.parent.parent / "csrc"
ELEMENTS = (torch.float32, torch.bfloat16, torch.float16)


def built(folder: Path, headers: Path) -> Path:
    """The program judge_score_emulated.cpp with the text in `headers`."""
    program = folder / "judge_score_emulated"
    source = Path(__file__).parent / "judge_score_emulated.cpp"
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = ["g++", "-std=c++20", "-O1", *sanitizers, "-Wall", "-Wextra", "-Werror", f"-I{headers}", source]
    subprocess.run([*command, "-o", program], check=True)
    return program


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return built(tmp_path_factory.mktemp("emulated"), CSRC / "common")


class Refused(AssertionError):
    """The sanitizers stopped the program."""


def emulate(program, call, group_I, kind="grpo", epsilon=1e-6, seed=0, omitted=-1):
    """(scores, (advantage, mean, std [3, I], size [I])) as the kernels would give them."""
    hidden_ISD, head_VD, labels = call["hidden_ISD"], call["head_VD"], call["labels"]
    anchor_IS = anchors_if_needed(
        hidden_ISD, head_VD, labels, min_mass=call["min_mass"], known_IS=call["anchor_logprob_IS"], group=None,
        vocab_start=0, vocab_size=call["vocab_size"],
    )  # fmt: skip
    tables, tiles_T3 = label_tables(labels, torch.device("cpu")), edge_tiles(labels, torch.device("cpu"))
    items, contexts, hidden_size = hidden_ISD.shape
    edges, (width, variants) = len(tables.token_E), tables.leaf_LR.shape
    dimensions, most_labels = tables.label_JN.shape
    sizes = [
        ELEMENTS.index(hidden_ISD.dtype), items, contexts, edges, dimensions, width, most_labels, variants,
        hidden_size, len(tiles_T3), call["vocab_start"], len(head_VD), KINDS.index(kind),
    ]  # fmt: skip
    threshold = -1.0 if call["min_mass"] is None else call["min_mass"]
    arrays = [
        torch.tensor(sizes, dtype=torch.int32), torch.tensor([threshold, epsilon]), hidden_ISD, head_VD,
        tables.token_E, tiles_T3, *table_arguments(tables), anchor_IS, call["missing_IJ"], call["multiplier_I"],
        group_I.to(torch.int64),
    ]  # fmt: skip
    given, results = program.parent / "in", program.parent / "out"
    with given.open("wb") as file:
        for array in arrays:
            content = b"" if array is None else array.contiguous().view(torch.uint8).numpy().tobytes()
            file.write(struct.pack("<q", len(content)) + content)
    wide_apart = {"ASAN_OPTIONS": "redzone=2048"}  # bytes: a row too far is then no other array's
    done = subprocess.run(
        [program, given, results, str(seed), str(omitted)], capture_output=True, text=True, env=wide_apart
    )
    if done.returncode != 0:
        raise Refused(done.stderr)
    content, at, found = results.read_bytes(), 0, []
    for dtype in (np.float32, np.int32, np.float32, np.float32, np.float32, np.float32, np.int32):
        (size,) = struct.unpack_from("<q", content, at)
        found.append(torch.from_numpy(np.frombuffer(content, dtype, size // 4, at + 8).copy()))
        at += 8 + size
    _, reason, figures, logprob, rewards, groups, size_I = found
    scores = JudgeScores(
        reason.view(items, dimensions),
        logprob.view(items, width),
        *figures.view(5, items, dimensions),
        *rewards.view(2, items),
    )
    return scores, (groups.view(3, items), size_I)


def groups_of(items):
    group_I = torch.randint(-1, 3, (items,)) * 2**33
    group_I[:3], group_I[-1:] = 41, 77
    return group_I


def assert_groups_close(found, reward_I, group_I, kind):
    expected = groups_by_hand(reward_I.double(), group_I, kind, 1e-6)
    for mine, field in zip((*found[0], found[1]), fields(expected), strict=True):
        truth = getattr(expected, field.name)
        torch.testing.assert_close(mine, truth.to(mine.dtype), rtol=2e-5, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("rubric", RUBRICS)
@pytest.mark.parametrize(("items", "kind"), [(1, "grpo"), (9, "dr_grpo"), (21, "rloo")])
def test_the_device_text_equals_the_definition(program, rubric, items, kind):
    call, group_I = ask(RUBRICS[rubric], items, min_mass=0.15, hidden_size=264), groups_of(items)
    scores, groups = emulate(program, call, group_I, kind)
    assert_scores_close(scores, by_hand(**call), 1e-5)
    assert_groups_close(groups, scores.reward_I, group_I, kind)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_operands(program, dtype):
    call = ask(RUBRICS["mixed"], 9, dtype=dtype, min_mass=0.15, hidden_size=520)
    call["hidden_ISD"][0, 0, :8] *= 1e-6  # subnormal in fp16
    scores, _ = emulate(program, call, groups_of(9))
    assert_scores_close(scores, by_hand(**call), 1e-5)


def test_without_mass_detectors_or_missing(program):
    call = ask(RUBRICS["single tokens"], 6, missing=False) | {"multiplier_I": None}
    scores, _ = emulate(program, call, groups_of(6))
    assert_scores_close(scores, by_hand(**call), 1e-5)


def test_not_finite_is_missing_and_ties_are_exact(program):
    call = ask(RUBRICS["mixed"], 21, min_mass=0.0, missing=False) | {"multiplier_I": None}
    call["hidden_ISD"][:] = call["hidden_ISD"][:1].clone()
    call["hidden_ISD"][3] = math.nan
    call["hidden_ISD"][4, :, 2] = -math.inf
    group_I = torch.tensor([0] * 18 + [1, 2, 2])
    scores, (groups, size_I) = emulate(program, call, group_I)
    assert_scores_close(scores, by_hand(**call), 1e-5)
    assert scores.reward_I[3:5].isnan().all() and size_I.tolist() == [16] * 18 + [1, 2, 2]
    assert (groups[0] == 0).all() and (groups[2] == 0).all()


def bits_of(program, call, group_I, **order):
    scores, (groups, size_I) = emulate(program, call, group_I, **order)
    figures = [getattr(scores, field.name) for field in fields(JudgeScores) if field.name != "group"]
    return [x.nan_to_num(-9.0) if x.is_floating_point() else x for x in (*figures, groups, size_I)]


def test_any_order_of_blocks_and_threads_gives_the_same_bits(program):
    call, group_I = ask(RUBRICS["mixed"], 21, min_mass=0.15), groups_of(21)
    expected = bits_of(program, call, group_I)
    for seed in range(1, 6):
        assert all(map(torch.equal, bits_of(program, call, group_I, seed=seed), expected))


@pytest.mark.parametrize("omitted", range(6))
def test_logits_and_scores_need_their_barriers_and_nothing_else_does(program, omitted):
    """Behind the rewards the kernel ends, and an item's passes over its group stay within one warp."""
    call, group_I = ask(RUBRICS["mixed"], 21, min_mass=0.15, missing=False), groups_of(21)
    expected = bits_of(program, call, group_I)
    found = bits_of(program, call, group_I, omitted=omitted)
    assert all(map(torch.equal, found, expected)) == (omitted >= 2)


def test_rows_of_another_rank_give_logits_of_0_and_are_not_read(program):
    call = ask(RUBRICS["mixed"], 5, missing=False) | {"anchor_logprob_IS": torch.randn(5, 8) - 4}
    whole = call | {"head_VD": call["head_VD"].clone()}
    whole["head_VD"][:2], whole["head_VD"][26:] = 0, 0
    shard = call | {"head_VD": call["head_VD"][2:26].clone(), "vocab_start": 2}
    mine, expected = (emulate(program, each, groups_of(5))[0] for each in (shard, whole))
    torch.testing.assert_close(mine.label_logprob_IL, expected.label_logprob_IL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("header", "old", "new"),
    [
        ("judge_logits.hpp", "smaller(first_item + i, job.items - 1)", "first_item + i"),
        ("judge_logits.hpp", "(mine ? row : 0) * job.head_stride", "(mine ? row : row) * job.head_stride"),
        ("judge_logits.hpp", "tile.first + smaller(e, tile.count - 1)", "tile.first"),
        ("judge_logits.hpp", "at += kWarpLanes", "at += 2 * kWarpLanes"),
        ("judge_logits.hpp", "finite ? from_bits(magnitude) * 0x1p112f", "finite ? from_bits(magnitude)"),
        ("judge_score.hpp", "edge = tables.parent[edge]", "edge = -1"),
        ("judge_score.hpp", "sum * std::exp(highest - shift)", "sum"),
        ("judge_score.hpp", "log_m / temperature", "log_m * temperature"),
        ("judge_score.hpp", "mass < job.min_mass", "mass > job.min_mass"),
        ("judge_score.hpp", "reason = finite ? reason : kNonFinite;", ""),
        ("judge_score.hpp", "probability > second ? probability : second", "second"),
        ("judge_score.hpp", "weights += tables.weight[dimension]", "weights += 1.0f"),
        ("judge_score.hpp", "is_finite(multiplier) ?", "true ?"),
        ("judge_score.hpp", "job.group[other] == group &&", "job.group[other] >= group &&"),
        ("judge_score.hpp", "one - shared->least[task];", "one;"),
        ("judge_score.hpp", "size > 1.0f ? size - 1.0f : 1.0f", "size > 1.0f ? size : 1.0f"),
    ],
)
def test_planted_faults_are_caught(tmp_path, header, old, new):
    headers = shutil.copytree(CSRC / "common", tmp_path / "common")
    text = (headers / header).read_text()
    assert text.count(old) == 1
    (headers / header).write_text(text.replace(old, new))
    mutant = built(tmp_path, headers)
    with pytest.raises(AssertionError):
        test_the_device_text_equals_the_definition(mutant, "mixed", 21, "grpo")
        test_sixteen_bit_operands(mutant, torch.float16)
        test_not_finite_is_missing_and_ties_are_exact(mutant)
        test_rows_of_another_rank_give_logits_of_0_and_are_not_read(mutant)


def test_tiles_cover_the_edges_in_order():
    for labels in RUBRICS.values():
        tiles = edge_tiles(labels, torch.device("cpu")).tolist()
        covered = [(context, first + e) for first, count, context in tiles for e in range(count)]
        assert covered == [(context, e) for e, (context, _) in enumerate(labels.edges)]
        assert all(1 <= count <= TILE_EDGES for _, count, _ in tiles)


# the CUDA module

needs_cuda_module = pytest.mark.skipif(
    find_spec("osim_core._cuda") is None, reason="osim_core._cuda is not built here (no nvcc at set-up)"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
# At most 116, 109, 32 and 32 with nvcc 13.0, for sm_80 and sm_90a. Above 128 an SM holds one block of 256 threads.
REGISTERS = {"judge_items_kernel": 124, "label_logits_kernel": 117, "judge_logits_kernel": 40, "group_advantages": 40}


def bundled(tool: str) -> str:
    return str(Path(find_spec("triton").submodule_search_locations[0]) / "backends/nvidia/bin" / tool)


@needs_cuda_module
def test_the_cuda_module_spills_nothing_and_lets_two_blocks_reside():
    command = [bundled("cuobjdump"), "--dump-resource-usage", find_spec("osim_core._cuda").origin]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for kernel, limit in REGISTERS.items():
        found = re.findall(rf"Function \S*{kernel}\S*\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
        assert len(found) == (6 if kernel in ("judge_items_kernel", "label_logits_kernel") else 2), (kernel, usage)
        for registers, stack, local in found:
            assert (int(stack), int(local)) == (0, 0) and int(registers) <= limit, (kernel, registers)


@needs_cuda_module
def test_the_products_load_128_bits_at_a_time(tmp_path):
    module = find_spec("osim_core._cuda").origin
    subprocess.run([bundled("cuobjdump"), "-xelf", "sm_90a", module], cwd=tmp_path, check=True, capture_output=True)
    found = {}
    for cubin in tmp_path.glob("*.cubin"):
        command = [bundled("cuobjdump"), "-sass", cubin]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for function in listing.split("Function : ")[1:]:
            name = function.split()[0]
            if "judge_items_kernel" in name or "label_logits_kernel" in name:
                found[name] = sass.counts(tuple(sass.parse(function)))
    assert len(found) == 6, list(found)
    for name, count in found.items():  # four items' states and four edges' rows; every element of them 16 products
        assert count["ldg_128"] == 8 and count["ffma"] >= 64 and count["ldl"] + count["stl"] == 0, (name, count)


@needs_cuda_module
@pytest.mark.parametrize(
    ("device", "dtype", "hidden_size", "reason"),
    [
        ("cuda", torch.bfloat16, 24, None),
        ("cuda", torch.bfloat16, 20, "needs rows of whole 16-byte units, not 20 elements"),
        ("cuda", torch.float64, 24, "knows fp32, bf16 and fp16"),
        ("cpu", torch.float32, 24, "needs a CUDA device"),
    ],
)
def test_what_the_cuda_form_refuses(device, dtype, hidden_size, reason):
    form = judge_score_op.implementations["cuda"]
    assert form.refuses(torch.device(device), dtype, hidden_size=hidden_size) == reason


@needs_cuda_module
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_call_says_what_it_needs():
    with pytest.raises(RuntimeError, match="needs an NVIDIA GPU and driver"):
        judge_score_cuda(**ask(RUBRICS["single tokens"], 3))
    with pytest.raises(RuntimeError, match="needs an NVIDIA GPU and driver"):
        group_advantages_cuda(torch.rand(3), torch.zeros(3, dtype=torch.int32), "grpo", 1e-6)


@needs_cuda_module
@needs_gpu
@pytest.mark.parametrize("dtype", ELEMENTS)
def test_the_gpu_agrees_with_the_definition(dtype):
    call, group_I = ask(RUBRICS["mixed"], 21, dtype=dtype, min_mass=0.15, hidden_size=520, device="cuda"), groups_of(21)
    scores = judge_score_cuda(**call)
    assert_scores_close(scores, by_hand(**call), 1e-5)
    found = group_advantages_cuda(scores.reward_I, group_I.cuda(), "grpo", 1e-6)
    mine = torch.stack((found.advantage_I, found.mean_I, found.std_I)).cpu(), found.size_I.cpu()
    assert_groups_close(mine, scores.reward_I.cpu(), group_I, "grpo")
