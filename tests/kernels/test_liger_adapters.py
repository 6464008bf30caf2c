"""The Liger adapters (CUDA) run under Triton's interpreter on the CPU and equal the references, gradients included.

In a process of its own, since TRITON_INTERPRET is read when Triton is imported; importing Liger alone takes about 20
seconds, hence the marker. RMSNorm is missing: its kernel calls `.to` on a float argument, which the interpreter
passes as a Python number.
"""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import torch
from osim_kernels.rope import rope_tables
from osim_kernels.rope.liger import rope_liger
from osim_kernels.rope.reference import rope_reference
from osim_kernels.swiglu.liger import swiglu_liger
from osim_kernels.swiglu.reference import swiglu_reference

def compare(adapter, reference, *inputs, constants=()):
    inputs = [x.requires_grad_() for x in inputs]
    before = [x.detach().clone() for x in inputs]
    outputs = [f(*inputs, *constants) for f in (adapter, reference)]
    mine, true = [x if isinstance(x, tuple) else (x,) for x in outputs]
    upstream = [torch.randn_like(x) for x in true]
    for got, want in zip(mine, true, strict=True):
        torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(x, inputs, [u.clone() for u in upstream]) for x in (mine, true)]
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want)
    assert all(map(torch.equal, before, inputs)), "the adapter wrote into its inputs"

torch.manual_seed(0)
compare(swiglu_liger, swiglu_reference, torch.randn(7, 24))
compare(swiglu_liger, swiglu_reference, torch.randn(2, 3, 10))
tables = rope_tables(torch.arange(13), 16, 10_000.0)
compare(rope_liger, rope_reference, torch.randn(13, 6, 16), torch.randn(13, 2, 16), constants=tables)
"""


@pytest.mark.slow
def test_liger_adapters_equal_the_references_under_the_interpreter():
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
