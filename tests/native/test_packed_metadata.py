"""cu_seqlens -> segment and position of every token: one C++ source, tested on the CPU, compiled for the GPU too."""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from osim_core import _native

needs_cuda_module = pytest.mark.skipif(
    find_spec("osim_core._cuda") is None, reason="osim_core._cuda is not built here (no nvcc at set-up)"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

segment_lengths = st.lists(st.one_of(st.just(0), st.integers(0, 40)), min_size=1, max_size=30)


def borders(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


@settings(max_examples=300, deadline=None)
@given(segment_lengths)
@example([0])
@example([0, 0, 5, 0, 0])
@example([1])
def test_every_token_knows_its_segment_and_offset(lengths):
    segments, positions = _native.packed_metadata(borders(lengths), sum(lengths))
    np.testing.assert_array_equal(segments, np.repeat(np.arange(len(lengths)), lengths))
    np.testing.assert_array_equal(positions, [offset for length in lengths for offset in range(length)])
    np.testing.assert_array_equal(_native.squared_lengths(borders(lengths)), np.square(lengths))


def test_squared_lengths_do_not_wrap_at_32_bits():
    assert list(_native.squared_lengths(borders([131_072, 3]))) == [131_072**2, 9]


def test_torch_tensors_are_read_in_place():
    segments, positions = _native.packed_metadata(torch.tensor([0, 2, 2, 5], dtype=torch.int32), 5)
    assert list(segments) == [0, 0, 2, 2, 2] and list(positions) == [0, 1, 0, 1, 2]


@pytest.mark.parametrize(
    ("cu_seqlens", "tokens", "message"),
    [
        ([0, 5, 3, 8], 8, "decreases at entry 2"),
        ([1, 5], 5, "start at 0"),
        ([0], 0, "at least one segment"),
        ([], 0, "at least one segment"),
        ([0, 5], 6, "ends at 5, not at 6 tokens"),
    ],
)
def test_malformed_borders_are_refused(cu_seqlens, tokens, message):
    with pytest.raises(ValueError, match=message):
        _native.packed_metadata(np.array(cu_seqlens, dtype=np.int32), tokens)


def test_int64_borders_are_refused_rather_than_converted():
    with pytest.raises(TypeError):
        _native.packed_metadata(np.array([0, 5]), 5)


@needs_cuda_module
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_cuda_module_imports_and_says_what_it_needs():
    from osim_core import _cuda

    with pytest.raises(RuntimeError, match=r"needs an NVIDIA GPU and driver \(.+\); on a CPU use .*_native"):
        _cuda.packed_metadata(torch.tensor([0, 5], dtype=torch.int32), 5)
    with pytest.raises(RuntimeError, match="needs an NVIDIA GPU"):
        _cuda.squared_lengths(torch.tensor([0, 5], dtype=torch.int32))


@needs_cuda_module
def test_the_cuda_module_holds_code_for_a100_and_h100():
    triton = Path(find_spec("triton").submodule_search_locations[0])
    bundled = triton / "backends/nvidia/bin/cuobjdump"
    cuobjdump = bundled if bundled.exists() else shutil.which("cuobjdump")
    if cuobjdump is None:
        pytest.skip("no cuobjdump, neither Triton's nor the toolkit's")
    module = find_spec("osim_core._cuda").origin
    listing = subprocess.run([cuobjdump, "--list-elf", module], capture_output=True, text=True, check=True).stdout
    assert "sm_80.cubin" in listing and "sm_90a.cubin" in listing, listing


@needs_cuda_module
@needs_gpu
@pytest.mark.parametrize("lengths", [[5], [0, 0, 5, 0, 7, 0], [1] * 1_000, [257, 0, 255, 30_000]])
def test_the_gpu_agrees_with_its_cpu_twin(lengths):
    from osim_core import _cuda

    cu_seqlens = borders(lengths)
    on_gpu = torch.from_numpy(cu_seqlens).cuda()
    for ours, twin in zip(
        _cuda.packed_metadata(on_gpu, sum(lengths)),
        _native.packed_metadata(cu_seqlens, sum(lengths)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours.cpu().numpy(), twin)
    np.testing.assert_array_equal(_cuda.squared_lengths(on_gpu).cpu().numpy(), _native.squared_lengths(cu_seqlens))


@needs_cuda_module
@needs_gpu
@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        (lambda: torch.tensor([0, 5], dtype=torch.int32), "expected a CUDA tensor, got one on cpu"),
        (lambda: torch.tensor([0, 5], device="cuda"), "expected int32"),
        (lambda: torch.zeros(8, dtype=torch.int32, device="cuda")[::2], "contiguous"),
        (lambda: torch.zeros(1, dtype=torch.int32, device="cuda"), "at least two"),
    ],
)
def test_the_gpu_refuses_what_it_cannot_read(cu_seqlens, message):
    from osim_core import _cuda

    with pytest.raises(ValueError, match=message):
        _cuda.packed_metadata(cu_seqlens(), 5)
