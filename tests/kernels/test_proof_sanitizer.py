"""The sanitizer names planted memory faults and stays silent on sound kernels, strided views and reused memory."""

import pytest
import torch
import triton
import triton.language as tl

from osim_kernels.proof.sanitizer import KernelFault, checked
from tests.support import triton_kernels
from tests.support.mutate import mutated

pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="a GPU runs the kernels here")


@triton.jit
def shift_kernel(x, out, n, shift, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at + shift, mask=at < n), mask=at < n)


@triton.jit
def sum_kernel(x, out, BLOCK: tl.constexpr, ATOMIC: tl.constexpr):
    total = tl.sum(tl.load(x + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)))
    if ATOMIC:
        tl.atomic_add(out, total)
    else:
        tl.store(out, tl.load(out) + total)


@pytest.fixture
def operands():
    return torch.randn(65, 64), torch.randn(64, 48)


def test_a_sound_kernel_passes_and_its_values_are_right(operands):
    a, b = operands
    with checked(a=a, b=b):
        c = triton_kernels.matmul(a, b)
    torch.testing.assert_close(c, a @ b, rtol=2e-2, atol=2e-2)  # TF32, as the default of tl.dot


@pytest.mark.parametrize(
    ("mask", "kept", "names"),
    [
        (
            "mask=row[:, None] < M, other=0.0",
            "mask=column[None, :] < 64",
            "load out of bounds.* past the end of a.*left = tl.load",
        ),
        (
            "mask=column[None, :] < N, other=0.0",
            "mask=row[:, None] < 128",
            "load out of bounds.* past the end of b.*right = tl.load",
        ),
        (
            "mask=(row[:, None] < M) & (column[None, :] < N)",
            "mask=column[None, :] < N",
            "store out of bounds.* past the end of c.*tl.store",
        ),
    ],
)
def test_a_dropped_mask_is_named_with_its_line(operands, mask, kept, names):
    mutant = mutated(triton_kernels, mask, kept)
    with pytest.raises(KernelFault, match=names), checked(a=operands[0], b=operands[1]):
        mutant.matmul(*operands)


def test_reads_before_a_tensor_are_out_of_bounds_too():
    x = torch.randn(64)
    with pytest.raises(KernelFault, match="first 4 bytes before x"), checked(x=x[1:]):
        shift_kernel[(1,)](x[1:], torch.empty(63), 63, -1, 64)


def test_a_view_may_not_leave_its_own_rows():
    x = torch.randn(8, 16)
    with checked():
        shift_kernel[(1,)](x[2:4], torch.empty(32), 32, 0, 32)
    with pytest.raises(KernelFault, match="out of bounds"), checked():
        shift_kernel[(1,)](x[2:4], torch.empty(33), 33, 0, 64)


def test_reading_what_nobody_wrote_is_a_fault():
    with pytest.raises(KernelFault, match="load of 32 uninitialised elements of x"), checked():
        scratch = torch.empty(64)
        scratch[:32] = 1
        shift_kernel[(1,)](scratch, torch.empty(64), 64, 0, 64)


def test_what_a_kernel_or_pytorch_wrote_may_be_read():
    with checked():
        scratch, out = torch.empty(64), torch.empty(64)
        shift_kernel[(1,)](torch.ones(64), scratch, 64, 0, 64)
        shift_kernel[(1,)](scratch, out, 64, 0, 64)
        shift_kernel[(1,)](torch.empty(64).fill_(2), out, 64, 0, 64)
    assert (scratch == 1).all() and (out == 2).all()


def test_freed_memory_that_comes_back_is_not_mistaken_for_written():
    for _ in range(4):
        with pytest.raises(KernelFault, match="uninitialised"), checked():
            torch.zeros(64)
            shift_kernel[(1,)](torch.empty(64), torch.zeros(64), 64, 0, 64)


def test_programs_that_write_one_element_race():
    with pytest.raises(KernelFault, match="race: out written by one program and read by another"), checked():
        sum_kernel[(2,)](torch.ones(64), torch.zeros(1), 32, False)


def test_a_write_under_another_programs_read_is_a_race_within_a_launch_only():
    x = torch.randn(64)
    with (
        pytest.raises(KernelFault, match=r"race: (x, out|out, x) read by one program and written by another"),
        checked(),
    ):
        shift_kernel[(2,)](x[1:], x[:-1], 48, 0, 32)
    with checked():
        shift_kernel[(1,)](x[:-1], torch.empty(63), 48, 0, 64)
        shift_kernel[(1,)](torch.zeros(63), x[1:], 48, 0, 64)


def test_atomics_meet_atomics_without_a_race():
    out = torch.zeros(1)
    with checked():
        sum_kernel[(2,)](torch.ones(64), out, 32, True)
    assert out.item() == 64


def test_descriptors_are_checked_and_clip_at_the_border():
    a, b = torch.randn(32, 32).bfloat16(), torch.randn(32, 32).bfloat16()
    with checked():
        c = triton_kernels.descriptor_matmul(a, b, tile=(32, 32, 32))
    torch.testing.assert_close(c.float(), a.float() @ b.float(), rtol=1e-2, atol=1e-2)
    with pytest.raises(KernelFault, match="uninitialised elements of b"), checked():
        triton_kernels.descriptor_matmul(a, torch.empty(32, 32, dtype=torch.bfloat16), tile=(32, 32, 32))


def test_nothing_stays_patched_after_a_block():
    from triton.runtime import interpreter as stock

    before = stock.InterpreterBuilder.create_masked_load
    with pytest.raises(KernelFault), checked():
        shift_kernel[(1,)](torch.empty(8), torch.empty(8), 8, 0, 8)
    assert stock.InterpreterBuilder.create_masked_load is before
    shift_kernel[(1,)](torch.empty(8), torch.empty(8), 8, 0, 8)


def test_a_mutant_needs_exactly_one_place():
    with pytest.raises(ValueError, match="occurs 0 times"):
        mutated(triton_kernels, "no such text", "")
