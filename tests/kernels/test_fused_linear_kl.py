"""Fused linear KL on one rank: values and gradients against whole distributions in fp64, and what divergences obey.

Shape suffixes: T tokens, D and E hidden sizes of student and teacher, V vocabulary, K stored ids.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from osim_kernels import registry
from osim_kernels.fused_linear_kl import (
    chunked,
    fused_linear_kl,
    fused_linear_kl_top_k,
    top_k_triton,
    triton,
    triton_kernels,
)
from osim_kernels.fused_linear_kl.divergence import Divergence, Scaling
from osim_kernels.proof.sanitizer import checked
from tests.support.mutate import mutated

pytestmark = pytest.mark.usefixtures("poisoned_empty")

KINDS = ("forward", "reverse", "jsd")
SMALL = triton.Config(16, 32, 16, 4, 2)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Odd tiles, so that a few tokens already cross many tile borders."""
    monkeypatch.setattr(chunked, "CPU_TILE", (7, 13))
    monkeypatch.setattr(triton, "CONFIGS", dict.fromkeys(triton.CONFIGS, SMALL))
    monkeypatch.setattr(triton, "PROGRAMS", 4)  # several column blocks in a part, and several parts
    monkeypatch.setattr(triton, "chunk_shape", lambda num_rows, vocab_rows, dtype: (24, 64))


def make(num_tokens, vocab, dtype=torch.float64, student=8, teacher=16, spread=1.0):
    student_TD = torch.randn(num_tokens, student, dtype=dtype).mul_(spread).requires_grad_()
    student_VD = torch.randn(vocab, student, dtype=dtype).requires_grad_()
    return (
        student_TD,
        student_VD,
        torch.randn(num_tokens, teacher, dtype=dtype),
        torch.randn(vocab, teacher, dtype=dtype),
    )


def distribution(hidden_TD, weight_VD, temperature=1.0, softcap=None, vocab_size=None):
    """Whole log-probs in fp64."""
    logits_TV = hidden_TD.double() @ weight_VD[:vocab_size].double().T
    if softcap:
        logits_TV = softcap * torch.tanh(logits_TV / softcap)
    return torch.log_softmax(logits_TV / temperature, dim=-1)


def divergence_by_definition(log_p, log_q, kind, beta):
    """torch.distributions' KL, put together as GKD writes it."""
    kl = torch.nn.functional.kl_div  # kl_div(a, b) = KL(b || a)
    options = {"reduction": "none", "log_target": True}
    if kind == "forward":
        return kl(log_q, log_p, **options).sum(-1)
    if kind == "reverse":
        return kl(log_p, log_q, **options).sum(-1)
    log_m = torch.log(beta * log_p.exp() + (1 - beta) * log_q.exp())
    return beta * kl(log_m, log_p, **options).sum(-1) + (1 - beta) * kl(log_m, log_q, **options).sum(-1)


def truth(operands, *, divergence, beta=0.5, weights_T=None, vocab_size=None, **options):
    """(value, d hidden, d head) in fp64 from whole distributions."""
    student_TD, student_VD = (x.detach().double().requires_grad_() for x in operands[:2])
    log_q = distribution(
        student_TD, student_VD, options.get("student_temperature", 1.0), options.get("student_softcap"), vocab_size
    )
    log_p = distribution(
        *operands[2:], options.get("teacher_temperature", 1.0), options.get("teacher_softcap"), vocab_size
    )
    value_T = divergence_by_definition(log_p, log_q, divergence, beta)
    if weights_T is not None:
        value_T = value_T * (weights_T != 0)
    return with_gradients(value_T, (student_TD, student_VD))


def with_gradients(value_T, inputs):
    ramp_T = torch.linspace(-1.0, 2.0, len(value_T), dtype=value_T.dtype, device=value_T.device)
    return value_T, *torch.autograd.grad((value_T * ramp_T).sum(), inputs)


def assert_close(mine, true, tolerance):
    for name, got, expected in zip(("value", "dhidden", "dhead"), mine, true, strict=True):
        error = (got.double().cpu() - expected).abs().max() / expected.abs().max().clamp(min=1.0)
        assert error <= tolerance, f"{name} is off by {error:.2e}"


def interpreted(operands, *, divergence, beta=0.5, vocab_size=None, module=None, **options):
    """The Triton entry with the public one's options; no row selection."""
    scalings = (
        Scaling(options.get(f"{whose}_temperature", 1.0), options.get(f"{whose}_softcap"))
        for whose in ("student", "teacher")
    )
    return (module or triton).fused_linear_kl_triton(
        *operands,
        real_rows=vocab_size or operands[1].shape[0],
        group=None,
        divergence=Divergence(divergence, beta),
        **dict(zip(("student", "teacher"), scalings, strict=True)),
    )


OPTIONS = [
    {},
    {"beta": 0.1},
    {"student_temperature": 0.6, "teacher_temperature": 1.7},
    {"student_softcap": 2.5},
    {"teacher_softcap": 1.5},
    {
        "student_softcap": 2.5,
        "teacher_softcap": 1.5,
        "student_temperature": 1.7,
        "teacher_temperature": 0.6,
        "beta": 0.8,
    },
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("num_tokens", "vocab"), [(1, 1), (1, 13), (23, 101), (8, 5)], ids=str)
@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_equals_whole_distributions_in_fp64(kind, options, num_tokens, vocab, implementation, monkeypatch):
    monkeypatch.setenv(registry.VARIABLE, f"fused_linear_kl={implementation}")
    operands = make(num_tokens, vocab)
    mine = with_gradients(fused_linear_kl(*operands, divergence=kind, **options), operands[:2])
    assert_close(mine, truth(operands, divergence=kind, **options), 1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3], OPTIONS[-1]], ids=str)
@pytest.mark.parametrize(("num_tokens", "vocab"), [(1, 1), (37, 101)], ids=str)
def test_triton_equals_whole_distributions(kind, options, num_tokens, vocab, device):
    operands = [x.detach().to(device).requires_grad_(x.requires_grad) for x in make(num_tokens, vocab, torch.float32)]
    mine = with_gradients(interpreted(operands, divergence=kind, **options), operands[:2])
    operands = [x.cpu() for x in operands]
    assert_close(mine, truth(operands, divergence=kind, **options), 5e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_operands_give_fp32_values_and_once_rounded_gradients(kind, dtype, device):
    operands = [x.detach().to(device).requires_grad_(x.requires_grad) for x in make(33, 70, dtype, 24, 40, spread=0.5)]
    mine = with_gradients(interpreted(operands, divergence=kind), operands[:2])
    tiled = with_gradients(fused_linear_kl(*operands, divergence=kind), operands[:2])
    true = truth([x.cpu() for x in operands], divergence=kind)
    for got in (mine, tiled):
        assert got[0].dtype == torch.float32 and got[1].dtype == dtype
        torch.testing.assert_close(got[0].double().cpu(), true[0], rtol=1e-5, atol=1e-5)
        for grad, expected in zip(got[1:], true[1:], strict=True):
            # the logits' gradient and the result are each rounded once to 16 bits
            bound = 4 * torch.finfo(dtype).eps * expected.abs().max()
            assert ((grad.double().cpu() - expected).abs() <= bound).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compute", [fused_linear_kl, interpreted], ids=["chunked", "triton"])
def test_padded_vocabulary_rows_have_no_probability_and_no_gradient(kind, compute):
    dtype = torch.float64 if compute is fused_linear_kl else torch.float32
    student_TD, student_VD, teacher_TE, teacher_VE = make(11, 45, dtype)
    student_VD.data[33:], teacher_VE[33:] = 1e3, -1e3  # either would dominate
    operands = (student_TD, student_VD, teacher_TE, teacher_VE)
    if compute is fused_linear_kl:
        operands = (*operands[:3], teacher_VE[:40])  # padded differently
    mine = with_gradients(
        compute(operands, divergence=kind, vocab_size=33)
        if compute is interpreted
        else compute(*operands, divergence=kind, vocab_size=33),
        operands[:2],
    )
    assert_close(mine, truth(operands, divergence=kind, vocab_size=33), 1e-5)
    assert (mine[2][33:] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_weight_zero_give_zero_whatever_they_hold(kind):
    operands = make(20, 31)
    weights_T = torch.tensor([0, 0.25, -3, 0, 1] * 4)
    true = truth(operands, divergence=kind, weights_T=weights_T)
    poisoned = [x.detach().clone() for x in operands]
    poisoned[0][weights_T == 0] = math.nan
    poisoned[2][weights_T == 0] = math.nan
    inputs = poisoned[0].requires_grad_(), poisoned[1].requires_grad_()
    mine = with_gradients(fused_linear_kl(*inputs, *poisoned[2:], divergence=kind, weights_T=weights_T), inputs)
    assert_close(mine, true, 1e-11)
    off = fused_linear_kl(*inputs, *poisoned[2:], divergence=kind, weights_T=torch.zeros(20))
    assert (off == 0).all() and all((grad == 0).all() for grad in torch.autograd.grad(off.sum(), inputs))


def full_and_top_k(student_TD, student_VD, teacher_TE, teacher_VE, **options):
    ids_TK = torch.arange(3, device=student_TD.device).expand(len(student_TD), 3)
    logprobs_TK = torch.log(ids_TK * 0.1 + 0.05)
    return (
        fused_linear_kl(student_TD, student_VD, teacher_TE, teacher_VE, **options),
        fused_linear_kl_top_k(student_TD, student_VD, ids_TK, logprobs_TK, **options),
    )


@pytest.mark.parametrize("weights", [[0, 0.25, -3, 0, 1], [1] * 5, [0] * 5], ids=str)
def test_a_known_number_of_active_rows_changes_no_bit(weights):
    operands, weights_T = make(20, 31), torch.tensor(weights * 4)
    told = full_and_top_k(*operands, weights_T=weights_T, active_rows=4 * sum(x != 0 for x in weights))
    for mine_T, counted_T in zip(told, full_and_top_k(*operands, weights_T=weights_T), strict=True):
        results = with_gradients(mine_T, operands[:2]), with_gradients(counted_T, operands[:2])
        assert all(torch.equal(mine, counted) for mine, counted in zip(*results, strict=True))


def test_with_the_number_of_active_rows_nothing_synchronises(monkeypatch):
    """A meta tensor has no values, so asking for one raises, as waiting for a GPU would."""
    monkeypatch.setenv(registry.VARIABLE, "fused_linear_kl=chunked,fused_linear_kl_top_k=chunked")

    def shapes(active_rows):
        operands = [torch.empty(length, 8, device="meta") for length in (10, 31, 10, 31)]
        results = full_and_top_k(*operands, weights_T=torch.empty(10, device="meta"), active_rows=active_rows)
        return [x.shape for x in results]

    assert shapes(7) == [(10,), (10,)]
    with pytest.raises(NotImplementedError, match=r"torch\.nonzero"):
        shapes(None)


def test_a_wrong_number_of_active_rows_is_an_error():
    operands, weights_T = make(9, 31), torch.tensor([1.0, 0, 1] * 3)
    for options, message in (
        ({"weights_T": weights_T, "active_rows": 5}, "active_rows is 5, but 6 weights are not 0"),
        ({"weights_T": weights_T, "active_rows": 10}, "active_rows counts non-zero weights_T of 9 rows, got 10"),
        ({"active_rows": 9}, "active_rows counts non-zero weights_T of 9 rows, got 9"),
    ):
        with pytest.raises(ValueError, match=message):
            fused_linear_kl(*operands, **options)
        with pytest.raises(ValueError, match=message):
            fused_linear_kl_top_k(
                *operands[:2], torch.zeros(9, 1, dtype=torch.int64), torch.full((9, 1), -1.0), **options
            )


@pytest.mark.parametrize("compute", [lambda x, **o: fused_linear_kl(*x, **o), interpreted], ids=["chunked", "triton"])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_heads_have_divergence_zero_and_gradient_zero(kind, compute):
    student_TD, student_VD, _, _ = make(9, 70, torch.float32)
    operands = student_TD, student_VD, student_TD.detach().clone(), student_VD.detach().clone()
    value_T, *grads = with_gradients(compute(operands, divergence=kind), operands[:2])
    torch.testing.assert_close(value_T, torch.zeros(9), rtol=0, atol=1e-6)
    assert all(grad.abs().max() < 1e-5 for grad in grads)
    if kind != "jsd":
        assert (value_T == 0).all()  # the two logits are equal bits, so every difference is exactly 0


@settings(max_examples=30, deadline=None)
@given(
    num_tokens=st.integers(1, 30), vocab=st.integers(1, 60), beta=st.floats(0.01, 0.99), spread=st.floats(0.01, 30),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_divergences_obey_their_bounds(num_tokens, vocab, beta, spread, seed):
    torch.manual_seed(seed)
    student_TD, student_VD, teacher_TE, teacher_VE = make(num_tokens, vocab, spread=spread)

    def swapped(**options):
        return fused_linear_kl(teacher_TE, teacher_VE, student_TD, student_VD, **options)

    def compute(**options):
        return fused_linear_kl(student_TD, student_VD, teacher_TE, teacher_VE, **options)

    forward_T, reverse_T = compute(divergence="forward"), compute(divergence="reverse")
    jsd_T = compute(divergence="jsd", beta=beta)
    assert min(x.min() for x in (forward_T, reverse_T, jsd_T)) > -1e-12
    torch.testing.assert_close(forward_T, swapped(divergence="reverse"))
    torch.testing.assert_close(jsd_T, swapped(divergence="jsd", beta=1 - beta))
    # the entropy of a coin with bias beta bounds it: log 2 at one half
    assert jsd_T.max() <= -beta * math.log(beta) - (1 - beta) * math.log(1 - beta) + 1e-12


def test_jensen_shannon_tends_to_the_two_kls():
    """GKD, section 3: JSD(beta) / beta tends to the forward KL as beta tends to 0."""
    operands = [0.4 * x for x in make(12, 40)]  # mild: the limit comes once beta is below every q / p
    forward_T, reverse_T = (fused_linear_kl(*operands, divergence=kind) for kind in ("forward", "reverse"))
    near_T = fused_linear_kl(*operands, divergence="jsd", beta=1e-7) / 1e-7
    far_T = fused_linear_kl(*operands, divergence="jsd", beta=1 - 1e-7) / 1e-7
    torch.testing.assert_close(near_T, forward_T, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(far_T, reverse_T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("compute", [lambda x, **o: fused_linear_kl(*x, **o), interpreted], ids=["chunked", "triton"])
@pytest.mark.parametrize("kind", KINDS)
def test_near_ties_at_large_logits_keep_their_probabilities(kind, compute):
    """Logits near 8192 that differ by 1: adding log-sum-exp to the maximum would cost the third decimal."""
    student_TD = torch.tensor([[8192.0, 1.0, 0.0, 0.0]], requires_grad=True)
    student_VD = torch.tensor([[1.0, 0, 0, 0], [1, -1, 0, 0], [1, -2, 0, 0]], requires_grad=True)
    teacher_TE, teacher_VE = student_TD.detach(), torch.tensor([[1.0, -2, 0, 0], [1, 0, 0, 0], [1, -1, 0, 0]])
    operands = student_TD, student_VD, teacher_TE, teacher_VE
    value_T, *grads = with_gradients(compute(operands, divergence=kind), operands[:2])
    true = truth(operands, divergence=kind)
    torch.testing.assert_close(value_T.double(), true[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grads[1][:, 1].double(), true[2][:, 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    operands = make(5, 17, student=3, teacher=4)

    def compute(student_TD, student_VD):
        return fused_linear_kl(
            student_TD, student_VD, *operands[2:], divergence=kind, beta=0.3, student_temperature=0.7,
            student_softcap=3.0, weights_T=torch.tensor([1.0, 0, 1, 1, 0]),
        )  # fmt: skip

    assert torch.autograd.gradcheck(compute, operands[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_and_a_frozen_student_get_no_gradient(kind):
    operands = make(9, 31)
    teacher = [x.requires_grad_() for x in operands[2:]]
    both = torch.autograd.grad(fused_linear_kl(*operands[:2], *teacher, divergence=kind).sum(), operands[:2])
    head_only = fused_linear_kl(operands[0].detach(), operands[1], *teacher, divergence=kind)
    assert torch.equal(torch.autograd.grad(head_only.sum(), operands[1])[0], both[1])
    assert not fused_linear_kl(*(x.detach() for x in operands[:2]), *teacher, divergence=kind).requires_grad


class LargestNewTensor(TorchDispatchMode):
    """Largest number of elements of any tensor with memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [x for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor)]
            self.numel = max([self.numel, *(x.numel() for x in tensors)])
        return out


class NoKernel:
    """Stands in for a kernel: the interpreter copies its operands, which a GPU does not."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


@pytest.mark.parametrize("implementation", ["chunked", "triton", "top-k", "top-k triton"])
def test_no_tensor_grows_with_tokens_times_vocabulary(implementation, monkeypatch):
    monkeypatch.setattr(chunked, "CPU_TILE", (16, 20))
    for kernel in ("_statistics_kernel", "_mixture_kernel", "_dlogits_kernel"):
        monkeypatch.setattr(triton, kernel, NoKernel())
    if implementation == "top-k triton":
        monkeypatch.setattr(registry.Op, "select", lambda *args, **case: top_k_triton.bucket_logprobs_triton)
        monkeypatch.setattr(top_k_triton, "FORWARD", dict.fromkeys(top_k_triton.FORWARD, SMALL))
        monkeypatch.setattr(top_k_triton, "chunk_shape", triton.chunk_shape)
    for kernel in ("_buckets_kernel", "_tail_dlogits_kernel", "_place_kernel"):
        monkeypatch.setattr(top_k_triton, kernel, NoKernel())
    largest = []
    for vocab in (200, 400):
        operands = make(60, vocab, torch.float32, 8, 8)
        operands[1].requires_grad_(False)
        ids_TK = torch.arange(3).expand(60, 3)
        with LargestNewTensor() as probe:
            if implementation.startswith("top-k"):
                kl_T = fused_linear_kl_top_k(*operands[:2], ids_TK, torch.full((60, 3), -2.0))
            elif implementation == "triton":
                kl_T = interpreted(operands, divergence="jsd")
            else:
                kl_T = fused_linear_kl(*operands, divergence="jsd")
            kl_T.sum().backward()
        largest.append(probe.numel)
    assert largest[0] == largest[1] <= 24 * 64


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=4, deadline=None)
@given(num_tokens=st.integers(1, 50), vocab=st.integers(1, 150), seed=st.integers(0, 9))
def test_triton_equals_chunked_on_any_size(kind, num_tokens, vocab, seed):
    torch.manual_seed(seed)
    operands = make(num_tokens, vocab, torch.float32, 4, 12)
    mine = with_gradients(interpreted(operands, divergence=kind, beta=0.3), operands[:2])
    assert_close(mine, truth(operands, divergence=kind, beta=0.3), 5e-6)


def test_no_access_out_of_bounds_and_no_race():
    operands = make(37, 101, torch.bfloat16)
    names = ("student_hidden", "student_head", "teacher_hidden", "teacher_head")
    with checked(**dict(zip(names, operands, strict=True))):
        value_T, *grads = with_gradients(interpreted(operands, divergence="jsd"), operands[:2])
    assert all(x.isfinite().all() for x in (value_T, *grads))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lead_NC = tl.where(real_C, lead_NC, LOWEST_LOGIT)", "lead_NC = tl.where(real_C, lead_NC, 0.0)"),
        ("(lead_shift_N - other_shift_N))", "lead_shift_N)"),
        ("moment_N += tl.sum(weight_NC", "moment_N = tl.sum(weight_NC"),
        ("rest * grad_N1 * tl.exp", "grad_N1 * tl.exp"),
        ("[:, None] * student_inverse_temperature", "[:, None]"),
        ("logits_NC / (student_softcap * student_inverse_temperature)", "logits_NC / student_softcap"),
        ("top_NC + tl.log(", "tl.log("),
    ],
)  # fmt: skip
def test_planted_faults_are_caught(old, new, monkeypatch):
    mutant = mutated(triton_kernels, old, new)
    for name in ("_statistics_kernel", "_mixture_kernel", "_dlogits_kernel"):
        monkeypatch.setattr(triton, name, getattr(mutant, name))
    with pytest.raises(AssertionError):
        for kind, options in (("jsd", OPTIONS[-1]), ("forward", OPTIONS[0]), ("reverse", OPTIONS[0])):
            operands = make(20, 75, torch.float32)
            mine = with_gradients(interpreted(operands, divergence=kind, **options), operands[:2])
            assert_close(mine, truth(operands, divergence=kind, **options), 5e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"divergence": "kl"}, "divergence must be forward, reverse or jsd"),
        ({"divergence": "jsd", "beta": 1.0}, "beta must lie between 0 and 1"),
        ({"teacher_temperature": 0.0}, "temperature must be above 0"),
        ({"student_softcap": -1.0}, "softcap must be above 0"),
        ({"weights_T": torch.ones(3)}, r"weights_T is \[3\]"),
    ],
)
def test_a_bad_option_is_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        fused_linear_kl(*make(4, 9), **change)


def test_operands_that_do_not_fit_are_an_error():
    student_TD, student_VD, teacher_TE, teacher_VE = make(4, 9)
    with pytest.raises(ValueError, match="student: hidden states"):
        fused_linear_kl(student_TD, student_VD.float(), teacher_TE, teacher_VE)
    with pytest.raises(ValueError, match="4 student rows, 3 teacher rows"):
        fused_linear_kl(student_TD, student_VD, teacher_TE[:3], teacher_VE)
    with pytest.raises(ValueError, match="the teacher's head has 8 rows here"):
        fused_linear_kl(student_TD, student_VD, teacher_TE, teacher_VE[:8])
