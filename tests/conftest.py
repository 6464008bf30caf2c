"""Fixtures every test folder shares: fixed seeds, memory that is NaN until somebody writes it, and groups of ranks,
each started once, when a test first asks for it. Without a GPU, Triton kernels run in Triton's interpreter here.
"""

import os
from pathlib import Path

# Triton reads this once, when a kernel is defined, so it has to stand before anything imports Triton.
if not Path("/proc/driver/nvidia/version").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

from tests.support.workers import Workers


@pytest.fixture(autouse=True)
def seed():
    """Same random tensors in every run and whatever the order of the tests."""
    torch.manual_seed(1234)


@pytest.fixture
def poisoned_empty():
    """torch.empty and its kin return NaN (floats) or the largest value (integers) instead of stale memory, so a
    kernel that leaves an output unwritten or reads scratch before writing it fails its comparison."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(scope="session")
def workers():
    """workers(n) -> the session's group of n gloo ranks."""
    groups: dict[int, Workers] = {}

    def group(size: int) -> Workers:
        if size not in groups or not groups[size].alive:
            groups[size] = Workers(size)
        return groups[size]

    yield group
    for started in groups.values():
        started.close()
