"""cu_seqlens -> tile plan, segments, positions and loss rows: the device text, run here by an emulated thread block,
equals the NumPy truth bit for bit; its barriers are necessary and sufficient; nvcc's code for it spills nothing.

Shape suffixes: T rows, S segments.
"""

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osim_core import _native
from osim_kernels.packed_attention import Segments
from osim_kernels.packed_attention.metadata import batch_metadata
from osim_kernels.packed_attention.tiles import TileCapacity, build_tile_plan

CSRC = Path(__file__).parent.parent.parent / "csrc"
needs_cuda_module = pytest.mark.skipif(
    find_spec("osim_core._cuda") is None, reason="osim_core._cuda is not built here (no nvcc at set-up)"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

lengths_of_segments = st.lists(st.one_of(st.just(0), st.just(1), st.integers(0, 300)), min_size=1, max_size=12)
blocks = st.sampled_from([(16, 16), (64, 16), (16, 64), (128, 64), (7, 5), (1, 3), (128, 128)])
windows = st.one_of(st.none(), st.integers(1, 200))


def borders_of(lengths) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


def truth(lengths, parents, tail):
    """Spans, segment of each row and position of each row, one segment and one token at a time."""
    borders = [0, *np.cumsum(lengths).tolist()]
    spans, segment_of_row, positions, prefix = [], [], [], []
    for segment, parent in enumerate(parents):
        prefix.append(0 if parent < 0 else prefix[parent] + lengths[parent])
        segment_of_row += [segment] * lengths[segment]
        positions += range(prefix[segment], prefix[segment] + lengths[segment])
        ancestor = segment
        while ancestor >= 0:
            delta = (borders[segment] - prefix[segment]) - (borders[ancestor] - prefix[ancestor])
            spans.append((*borders[segment : segment + 2], *borders[ancestor : ancestor + 2], delta))
            ancestor = parents[ancestor]
    return spans, segment_of_row + [len(lengths)] * tail, positions + list(range(tail))


def assert_equals_truth(lengths, parents, tail, block, window, weights, device="cpu"):
    spans, segment_of_row, positions = truth(lengths, parents, tail)
    rows = sum(lengths) + tail
    depths = [0 if parent < 0 else None for parent in parents]
    for segment, parent in enumerate(parents):
        depths[segment] = 0 if parent < 0 else depths[parent] + 1
    capacity = TileCapacity.of_segments(
        rows, len(lengths), *block, max_depth=max(depths), max_descendants=len(lengths) - 1 if max(depths) else 0
    )
    given = (borders_of(lengths), torch.tensor(parents, dtype=torch.int32), weights)
    cu_seqlens, parents, weights_T = (None if x is None else x.to(device) for x in given)
    mine = batch_metadata(
        cu_seqlens,
        num_rows=rows,
        block_q=block[0],
        block_k=block[1],
        window=window,
        parents=parents if max(depths) else None,
        weights=weights_T,
        capacity=capacity,
    )
    exact = build_tile_plan(spans, rows, rows, *block, window)
    padded = build_tile_plan(spans, rows, rows, *block, window, capacity)
    for name, count in zip(capacity._fields, mine.counts.tolist(), strict=False):
        assert getattr(mine.plan, name).data_ptr() % 16 == 0
        assert count == len(getattr(exact, name)), name
        assert torch.equal(getattr(mine.plan, name).cpu(), getattr(padded, name)), name
    assert mine.segment_of_row.tolist() == segment_of_row
    assert mine.positions.tolist() == positions
    if weights is None:
        assert mine.loss_rows is None and mine.counts[4] == 0
    else:
        rows_with_loss = weights.nonzero().flatten().tolist()
        assert mine.counts[4] == len(rows_with_loss)
        assert mine.loss_rows.tolist() == rows_with_loss + [-1] * (rows - len(rows_with_loss))


@settings(max_examples=200, deadline=None)
@given(lengths_of_segments, blocks, windows, st.integers(0, 50), st.integers(0, 3), st.integers(0, 2**31))
def test_packed_documents(lengths, block, window, tail, sentinels, seed):
    lengths = [*lengths, *[0] * sentinels]
    weights_T = (torch.rand(sum(lengths) + tail, generator=torch.Generator().manual_seed(seed)) < 0.3).float()
    assert_equals_truth(lengths, [-1] * len(lengths), tail, block, window, weights_T)


@settings(max_examples=200, deadline=None)
@given(st.data(), lengths_of_segments, blocks, windows)
def test_trees_of_shared_prefixes(data, lengths, block, window):
    parents = [-1]
    for segment in range(1, len(lengths)):  # depth first: the segment before, or one of its ancestors, or none
        path = [segment - 1]
        while path[-1] >= 0:
            path.append(parents[path[-1]])
        parents.append(data.draw(st.sampled_from(path)))
    assert_equals_truth(lengths, parents, 5, block, window, None)


@pytest.mark.parametrize(
    "lengths",
    [[65_536], [16] * 4_096, [0] * 4_096 + [3], [1] * 5_000, [2_047, 1, 2_049, 4_096], [0], [0, 0, 9, 0, 0]],
    ids=["one giant", "4096 documents", "mostly empty", "ones", "chunk borders", "nothing", "zeros around"],
)
@pytest.mark.parametrize("window", [None, 1_000])
def test_extremes(lengths, window):
    weights_T = torch.zeros(sum(lengths) + 3)
    weights_T[::7] = torch.nan  # not zero, so it must reach the loss and be found there
    assert_equals_truth(lengths, [-1] * len(lengths), 3, (128, 64), window, weights_T)


def test_a_group_of_replies_shares_its_prompt():
    lengths, parents = [1_999, *[501] * 8] * 3, [-1, *[0] * 8, -1, *[9] * 8, -1, *[18] * 8]
    assert_equals_truth(lengths, parents, 0, (128, 64), None, None)


def test_layers_that_plan_from_segments_and_from_the_device_read_the_same_tables():
    cu_seqlens, parents = borders_of([200, 70, 3, 130, 0, 64]), torch.tensor([-1, 0, 1, 0, -1, -1], dtype=torch.int32)
    capacity = TileCapacity.of_segments(467, 6, 128, 64, max_depth=2, max_descendants=3)
    metadata = batch_metadata(
        cu_seqlens, num_rows=467, block_q=128, block_k=64, window=150, parents=parents, capacity=capacity
    )
    plan = Segments.from_cu_seqlens(cu_seqlens, parents, window=150).tile_plan(467, 467, 128, 64)
    for name, count in zip(capacity._fields, metadata.counts.tolist(), strict=False):
        assert torch.equal(getattr(metadata.plan, name)[:count], getattr(plan, name)), name


def test_a_row_of_nothing():
    metadata = batch_metadata(torch.zeros(4, dtype=torch.int32), num_rows=0, block_q=64, block_k=64)
    assert metadata.counts.tolist() == [0] * 5 and metadata.positions.numel() == 0


@pytest.mark.parametrize(
    ("cu_seqlens", "options", "message"),
    [
        ([0, 5, 3, 8], {}, "cu_seqlens must start at 0, never decrease"),
        ([1, 8], {}, "cu_seqlens must start at 0"),
        ([0, 9], {}, "end within the rows"),
        ([0], {}, "borders in cu_seqlens must be between 2"),
        ([0, 2, 4, 8], {"parents": [-1, -1, 0]}, "parents must be -1, the segment before or one of its ancestors"),
        ([0, 2, 4, 8], {"parents": [-1, 1, -1]}, "parents must be -1"),
        ([0, 2, 4, 8], {"parents": [-1, 2, 1]}, "parents must be -1"),
        ([0, 2, 4, 8], {"parents": [-1, -2, 1]}, "parents must be -1"),
        ([0, 8], {"parents": [-1, -1]}, "parents: expected one per segment"),
        ([0, 8], {"weights": torch.ones(7)}, "weights: expected one per row"),
        ([0, 8], {"weights": torch.ones(8).double()}, r"weights: expected torch.float32 \[n\]"),
        ([0, 8], {"window": 0}, "window must be at least 1, got 0"),
        ([0, 8], {"block_q": 0, "capacity": TileCapacity(1, 1, 1, 1)}, "block_q must be between 1 and"),
        ([0, 8], {"block_k": 1 << 17}, "block_k must be between 1 and 65536, got 131072"),
        ([0, 8], {"capacity": TileCapacity(0, 1, 1, 1)}, "needs 1 query tiles, and the capacity is 0"),
        ([0, 8], {"capacity": TileCapacity(1, 1, 1, 0)}, "needs 1 visits, and the capacity is 0"),
    ],
)
def test_bad_input_names_itself(cu_seqlens, options, message):
    options = {"num_rows": 8, "block_q": 64, "block_k": 64} | options
    if isinstance(options.get("parents"), list):
        options["parents"] = torch.tensor(options["parents"], dtype=torch.int32)
        options["capacity"] = TileCapacity(9, 9, 9, 9)
    with pytest.raises(ValueError, match=message):
        batch_metadata(torch.tensor(cu_seqlens, dtype=torch.int32), **options)


def test_parents_need_a_capacity():
    minus_one = torch.tensor([-1], dtype=torch.int32)
    with pytest.raises(ValueError, match="parents need a capacity"):
        batch_metadata(torch.tensor([0, 8], dtype=torch.int32), num_rows=8, block_q=64, block_k=64, parents=minus_one)


def test_int64_borders_are_refused_rather_than_converted():
    with pytest.raises(ValueError, match=r"cu_seqlens: expected torch.int32 \[n\]"):
        batch_metadata(torch.tensor([0, 5]), num_rows=5, block_q=64, block_k=64)
    with pytest.raises(TypeError):
        _native.batch_metadata(np.array([0, 5]), None, None, 5, 64, 64, 0, [1, 1, 1, 1])


# barriers


@pytest.fixture(scope="module")
def barriers(tmp_path_factory):
    """The program tests/native/block_barriers.cpp, with the sanitizers of g++."""
    program = tmp_path_factory.mktemp("barriers") / "block_barriers"
    source = Path(__file__).parent / "block_barriers.cpp"
    subprocess.run(
        ["g++", "-std=c++20", "-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wall"]
        + [f"-I{CSRC / folder}" for folder in ("common", "native")]
        + [str(source), "-o", str(program)],
        check=True,
    )
    return program


def test_any_order_of_threads_and_blocks_gives_the_same_bits(barriers):
    done = subprocess.run([barriers, "shuffle"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"\d+ orders agree\n", done.stdout)


def test_without_any_one_of_its_barriers_a_block_goes_wrong(barriers):
    """Each barrier is left out in turn, in some order of the threads that must show: in other bits, or in an access
    that the sanitizer stops. So none is superfluous, and the emulation does notice a missing one."""
    done = subprocess.run([barriers, "omit"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"(\d+) of \1 barriers missed\n", done.stdout), done.stdout


# the CUDA module


@needs_cuda_module
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_cuda_module_imports_and_says_what_it_needs():
    from osim_core import _cuda

    with pytest.raises(RuntimeError, match=r"needs an NVIDIA GPU and driver \(.+\); on a CPU use .*_native"):
        _cuda.batch_metadata(torch.tensor([0, 5], dtype=torch.int32), None, None, 5, 64, 64, 0, [1, 1, 1, 1])


def cuobjdump() -> str:
    triton = Path(find_spec("triton").submodule_search_locations[0])
    bundled = triton / "backends/nvidia/bin/cuobjdump"
    found = bundled if bundled.exists() else shutil.which("cuobjdump")
    if found is None:
        pytest.skip("no cuobjdump, neither Triton's nor the toolkit's")
    return str(found)


@needs_cuda_module
def test_the_cuda_module_holds_code_for_a100_and_h100_that_spills_nothing():
    module = find_spec("osim_core._cuda").origin
    listing = subprocess.run([cuobjdump(), "--list-elf", module], capture_output=True, text=True, check=True).stdout
    assert "sm_80.cubin" in listing and "sm_90a.cubin" in listing, listing
    usage = subprocess.run(
        [cuobjdump(), "--dump-resource-usage", module], capture_output=True, text=True, check=True
    ).stdout
    kernels = re.findall(
        r"Function \S*batch_metadata_kernel\S*\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage
    )
    assert len(kernels) == 2, usage
    for registers, stack, shared, local in kernels:
        assert (int(stack), int(local)) == (0, 0)
        assert int(registers) <= 64  # 58 and 60 with nvcc 13.0
        assert int(shared) <= 20 * 1_024  # 19,456 bytes of scratch, and what sm_90 reserves


@needs_cuda_module
@needs_gpu
@pytest.mark.parametrize("lengths", [[5], [0, 0, 5, 0, 7, 0], [1] * 1_000, [257, 0, 255, 30_000], [16] * 4_096])
@pytest.mark.parametrize("window", [None, 1_000])
def test_the_gpu_agrees_with_the_truth(lengths, window):
    weights_T = (torch.arange(sum(lengths) + 3) % 5 == 0).float()
    assert_equals_truth(lengths, [-1] * len(lengths), 3, (128, 64), window, weights_T, "cuda")


@needs_cuda_module
@needs_gpu
def test_the_gpu_agrees_on_shared_prefixes_and_malformed_borders():
    assert_equals_truth([1_999, *[501] * 8], [-1, *[0] * 8], 0, (128, 64), None, None, "cuda")
    decreasing = torch.tensor([0, 5, 3, 8], dtype=torch.int32, device="cuda")
    with pytest.raises(ValueError, match="never decrease"):
        batch_metadata(decreasing, num_rows=8, block_q=64, block_k=64).check()


@needs_cuda_module
@needs_gpu
@pytest.mark.parametrize(
    ("cu_seqlens", "options", "message"),
    [
        (lambda: torch.tensor([0, 5], device="cuda"), {}, "cu_seqlens: expected int32, got Long"),
        (lambda: torch.zeros(8, dtype=torch.int32, device="cuda")[::2], {}, "contiguous"),
        (lambda: torch.zeros(1, dtype=torch.int32, device="cuda"), {}, "borders in cu_seqlens"),
        (
            lambda: torch.zeros(2, dtype=torch.int32, device="cuda"),
            {"weights": torch.ones(5)},
            "weights: expected a CUDA",
        ),
    ],
)
def test_the_gpu_refuses_what_it_cannot_read(cu_seqlens, options, message):
    with pytest.raises(ValueError, match=message):
        batch_metadata(cu_seqlens(), num_rows=5, block_q=64, block_k=64, **options)
