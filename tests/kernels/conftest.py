"""Kernel tests run on the GPU if there is one, else in Triton's interpreter, corrected to a GPU's arithmetic."""

import pytest
import torch
import triton

if triton.knobs.runtime.interpret:  # tests/conftest.py sets TRITON_INTERPRET where there is no GPU
    from osim_kernels.proof import interpreter

    interpreter.install()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where Triton kernels run in this session."""
    return torch.device("cpu" if triton.knobs.runtime.interpret else "cuda")
