"""The corrected interpreter computes in bfloat16 and TF32 as the hardware does; PyTorch on the CPU is the truth."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from osim_kernels.proof import interpreter

pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="a GPU runs the kernels here")

ALL_BITS = torch.arange(65_536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
FINITE = ALL_BITS[ALL_BITS.isfinite()]


@triton.jit
def unary_kernel(x, out, n, operation: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n)
    if operation == "sqrt":
        value = tl.sqrt(value.to(tl.float32)).to(tl.bfloat16)
    elif operation == "exp":
        value = tl.exp(value.to(tl.float32)).to(tl.bfloat16)
    elif operation == "abs":
        value = tl.abs(value)
    elif operation == "negate":
        value = -value
    elif operation == "half":
        value = value * 0.5
    tl.store(out + at, value.to(out.dtype.element_ty), mask=at < n)


@triton.jit
def binary_kernel(x, y, out, n, operation: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    a = tl.load(x + at, mask=at < n)
    b = tl.load(y + at, mask=at < n)
    if operation == "add":
        value = a + b
    elif operation == "subtract":
        value = a - b
    elif operation == "multiply":
        value = a * b
    elif operation == "divide":
        value = a / b
    elif operation == "maximum":
        value = tl.maximum(a, b)
    elif operation == "where less":
        value = tl.where(a < b, a, b)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=at < n)


@triton.jit
def reduce_kernel(x, out, N: tl.constexpr):
    value = tl.load(x + tl.arange(0, N))
    tl.store(out, tl.sum(value))
    tl.store(out + 1, tl.max(value))
    tl.store(out + 2, tl.min(value))
    tl.store(out + 3, tl.argmax(value, axis=0).to(tl.float32))


@triton.jit
def dot_kernel(a, b, c, N: tl.constexpr, precision: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    product = tl.dot(tl.load(a + at), tl.load(b + at), input_precision=precision)
    tl.store(c + at, product.to(c.dtype.element_ty))


@triton.jit
def collide_kernel(out, value, N: tl.constexpr):
    tl.atomic_add(out + tl.arange(0, N) % 2, tl.full((N,), value, tl.float32).to(tl.bfloat16))


@triton.jit
def optional_kernel(x, out, scale):
    value = None
    if value is None:
        value = tl.load(x) * scale.to(tl.float32)
    tl.store(out, value)


def same_bits(mine, truth):
    both_nan = mine.isnan() & truth.isnan()
    return bool(((mine.view(torch.int16) == truth.view(torch.int16)) | both_nan).all())


@pytest.mark.parametrize(
    ("operation", "truth"),
    [
        ("sqrt", lambda x: x.float().sqrt().bfloat16()),
        ("exp", lambda x: x.float().exp().bfloat16()),
        ("abs", torch.abs),
        ("negate", torch.neg),
        ("half", lambda x: (x.float() * 0.5).bfloat16()),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_functions_of_every_bfloat16(operation, truth):
    x = ALL_BITS.clone() if operation != "exp" else FINITE.clone().clamp(-80, 80)
    if operation == "negate":  # Triton subtracts from +0
        x = x.masked_fill(x == 0, 1.0)
    out = torch.empty_like(x)
    unary_kernel[(1,)](x, out, len(x), operation, 65_536)
    if operation == "exp":  # numpy's and PyTorch's float32 exp differ in the last place: one bf16 step at ties
        assert (out.float() / truth(x).float() - 1).abs().max() <= 2**-7
    else:
        assert same_bits(out, truth(x))


@pytest.mark.parametrize(
    ("operation", "truth"),
    [
        ("add", torch.add),
        ("subtract", torch.sub),
        ("multiply", torch.mul),
        ("divide", lambda a, b: (a.float() / b.float()).bfloat16()),
        ("maximum", torch.maximum),
        ("where less", torch.minimum),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_pairs_of_bfloat16(operation, truth):
    x = FINITE[torch.randperm(len(FINITE))]
    y = FINITE[torch.randperm(len(FINITE))]
    if operation in ("maximum", "where less"):  # +0 and -0 are equal, and which is taken is open
        x, y = x.masked_fill(x == 0, 1.0), y.masked_fill(y == 0, 2.0)
    out = torch.empty_like(x)
    binary_kernel[(1,)](x, y, out, len(x), operation, 65_536)
    assert same_bits(out, truth(x, y))


@pytest.mark.parametrize("wide", [torch.float32, torch.float16, torch.int32])
def test_casts_round_to_nearest_even(wide):
    x = (torch.randn(4096) * 300).to(wide)
    x[:2] = torch.tensor([257, 259]).to(wide)  # ties: 256 and 260
    out = torch.empty(4096, dtype=torch.bfloat16)
    unary_kernel[(1,)](x, out, 4096, "none", 4096)
    assert same_bits(out, x.to(torch.bfloat16)) and out[:2].tolist() == [256.0, 260.0]


def test_bits_round_trip_and_nan_stays_nan():
    bits = np.arange(65_536, dtype=np.uint16)
    values = interpreter.from_bf16_bits(bits)
    again = interpreter.to_bf16_bits(values)
    assert (np.isnan(values) | (again == bits)).all() and np.isnan(
        interpreter.from_bf16_bits(again[np.isnan(values)])
    ).all()


def test_reductions_of_bfloat16():
    x = torch.randn(256).bfloat16()
    out = torch.empty(4)
    reduce_kernel[(1,)](x, out, 256)
    assert out[0].item() == pytest.approx(x.float().sum().item(), rel=2**-7, abs=2**-4)
    assert out[1:].tolist() == [x.max().item(), x.min().item(), x.argmax().item()]


def test_dot_of_bfloat16():
    a, b = torch.randn(2, 32, 32).bfloat16()
    c = torch.empty(32, 32)
    dot_kernel[(1,)](a, b, c, 32, "ieee")
    torch.testing.assert_close(c, a.float() @ b.float(), rtol=1e-6, atol=1e-6)


def test_an_accidental_tf32_dot_is_off_by_what_the_tensor_core_drops():
    a, b = torch.randn(2, 32, 32)
    out = {precision: torch.empty(32, 32) for precision in ("ieee", "tf32")}
    for precision, c in out.items():
        dot_kernel[(1,)](a, b, c, 32, precision)
    error = {precision: (c - a @ b).abs().max().item() for precision, c in out.items()}
    assert error["ieee"] < 1e-5 and 1e-3 < error["tf32"] < 3e-2


def test_atomics_of_bfloat16_meet_on_one_address():
    out = torch.zeros(2, dtype=torch.bfloat16)
    collide_kernel[(3,)](out, 0.5, 16)
    assert out.tolist() == [12.0, 12.0]


def test_float_arguments_are_fp32_scalars_and_none_is_a_value():
    out = torch.empty(1)
    optional_kernel[(1,)](torch.tensor([3.0]), out, 0.1)
    assert out.item() == torch.tensor(3.0).mul(torch.tensor(0.1)).item()


def test_an_unknown_triton_is_refused(monkeypatch):
    monkeypatch.setattr(interpreter, "_installed", False)
    monkeypatch.setattr(interpreter, "KNOWN_VERSIONS", ("1.0",))
    with pytest.raises(RuntimeError, match=r"knows Triton 1\.0, not"):
        interpreter.install()
