"""Fused linear log-prob on one rank: values, gradients, skipped rows and memory, against whole logits in fp64.

Shape suffixes: T tokens, D hidden, V vocabulary.
"""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from osim_kernels import registry
from osim_kernels.fused_linear_logprob import chunked, fused_linear_logprob

pytestmark = pytest.mark.usefixtures("poisoned_empty")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Odd tiles, so that a few tokens already cross many tile borders."""
    monkeypatch.setattr(chunked, "CPU_TILE", (7, 13))


def make(num_tokens, hidden, vocab, dtype=torch.float64, spread=1.0):
    hidden_TD = torch.randn(num_tokens, hidden, dtype=dtype).mul_(spread).requires_grad_()
    weight_VD = torch.randn(vocab, hidden, dtype=dtype).requires_grad_()
    return hidden_TD, weight_VD, torch.randint(0, vocab, (num_tokens,))


def truth(hidden_TD, weight_VD, targets_T, **options):
    """Plain formulas over whole logits in fp64, apart from the package's own reference."""
    hidden_TD, weight_VD = (x.detach().double().requires_grad_() for x in (hidden_TD, weight_VD))
    logits_TV = hidden_TD @ weight_VD[: options.get("vocab_size")].T
    if cap := options.get("logit_softcap"):
        logits_TV = cap * torch.tanh(logits_TV / cap)
    logprobs_TV = torch.log_softmax(logits_TV / options.get("temperature", 1.0), dim=-1)
    weights_T = options.get("weights_T")
    active_T = torch.ones(len(targets_T)) if weights_T is None else (weights_T != 0).double()
    logprob_T = logprobs_TV[torch.arange(len(targets_T)), targets_T * active_T.long()] * active_T
    entropy_T = torch.distributions.Categorical(logits=logprobs_TV).entropy() * active_T
    return (hidden_TD, weight_VD), logprob_T, entropy_T


def with_gradients(inputs, logprob_T, entropy_T):
    ramp_T = torch.linspace(-1.0, 2.0, len(logprob_T), dtype=torch.float64)
    loss = (logprob_T.double() * ramp_T).sum()
    if entropy_T is not None:
        loss = loss + (entropy_T.double() * ramp_T.flip(0)).sum()
    values = (logprob_T,) if entropy_T is None else (logprob_T, entropy_T)
    return *values, *torch.autograd.grad(loss, inputs)


def assert_exact(hidden_TD, weight_VD, targets_T, tolerance=1e-11, **options):
    mine = with_gradients((hidden_TD, weight_VD), *fused_linear_logprob(hidden_TD, weight_VD, targets_T, **options))
    inputs, logprob_T, entropy_T = truth(hidden_TD, weight_VD, targets_T, **options)
    true = with_gradients(inputs, logprob_T, entropy_T if options.get("with_entropy") else None)
    names = (*("logprob", "entropy")[: len(mine) - 2], "dhidden", "dweight")
    for name, got, expected in zip(names, mine, true, strict=True):
        error = (got.double() - expected).abs().max() / expected.abs().max().clamp(min=1.0)
        assert error <= tolerance, f"{name} is off by {error:.2e}"


OPTIONS = [
    {},
    {"with_entropy": True},
    {"temperature": 0.6},
    {"temperature": 1.7, "with_entropy": True},
    {"logit_softcap": 2.5},
    {"logit_softcap": 2.5, "temperature": 0.6, "with_entropy": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "vocab"), [(1, 1), (1, 13), (7, 14), (23, 101), (8, 5)], ids=lambda size: str(size)
)
def test_equals_whole_logits_in_fp64(num_tokens, vocab, options):
    assert_exact(*make(num_tokens, 6, vocab), **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_padded_vocabulary_rows_get_no_probability_and_no_gradient(options):
    hidden_TD, weight_VD, targets_T = make(11, 6, 40)
    targets_T = targets_T % 33
    weight_VD.data[33:] = 1e3  # would dominate every softmax
    assert_exact(hidden_TD, weight_VD, targets_T, vocab_size=33, **options)
    logprob_T, _ = fused_linear_logprob(hidden_TD, weight_VD, targets_T, vocab_size=33)
    assert (torch.autograd.grad(logprob_T.sum(), weight_VD)[0][33:] == 0).all()


@pytest.mark.parametrize("weights", [torch.bool, torch.float32])
def test_rows_of_weight_zero_give_zero_and_no_gradient_whatever_their_target(weights):
    hidden_TD, weight_VD, targets_T = make(20, 6, 31)
    weights_T = torch.tensor([0, 0.25, -3, 0, 1] * 4).to(weights)
    targets_T[weights_T == 0] = -100
    options = {"weights_T": weights_T, "with_entropy": True}
    assert_exact(hidden_TD, weight_VD, targets_T, **options)
    logprob_T, entropy_T = fused_linear_logprob(hidden_TD, weight_VD, targets_T, **options)
    grad_TD = torch.autograd.grad(logprob_T.sum() + entropy_T.sum(), hidden_TD)[0]
    off_T = weights_T == 0
    assert (logprob_T[off_T] == 0).all() and (entropy_T[off_T] == 0).all() and (grad_TD[off_T] == 0).all()
    assert (logprob_T[~off_T] < 0).all() and (entropy_T[~off_T] > 0).all()


def test_only_zero_or_not_matters_in_the_weights():
    hidden_TD, weight_VD, targets_T = make(9, 6, 31)
    weights_T = torch.tensor([1e-30, 5.0, 0.0] * 3)
    once, _ = fused_linear_logprob(hidden_TD, weight_VD, targets_T, weights_T=weights_T)
    again, _ = fused_linear_logprob(hidden_TD, weight_VD, targets_T, weights_T=weights_T != 0)
    assert torch.equal(once, again)


def test_a_row_set_that_is_all_masked_gives_zeros_with_a_zero_gradient():
    hidden_TD, weight_VD, targets_T = make(9, 6, 31)
    out = fused_linear_logprob(hidden_TD, weight_VD, targets_T, weights_T=torch.zeros(9), with_entropy=True)
    assert all((x == 0).all() for x in with_gradients((hidden_TD, weight_VD), *out))


def test_masked_rows_cost_no_matmul():
    hidden_TD, weight_VD, targets_T = make(40, 6, 31)

    def flops(weights_T):
        with FlopCounterMode(display=False) as counter:
            logprob_T, _ = fused_linear_logprob(hidden_TD, weight_VD, targets_T, weights_T=weights_T)
            logprob_T.sum().backward()
        return counter.get_total_flops()

    all_rows = flops(torch.ones(40))
    assert all_rows > 0
    assert flops((torch.arange(40) % 4 == 0).float()) == all_rows // 4
    assert flops(torch.zeros(40)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_low_precision_inputs_give_fp32_outputs_with_fp32_accuracy(dtype, with_entropy):
    hidden_TD, weight_VD, targets_T = make(50, 64, 301, dtype, spread=0.3)
    inputs, logprob_T, entropy_T = truth(hidden_TD, weight_VD, targets_T)
    out = fused_linear_logprob(hidden_TD, weight_VD, targets_T, with_entropy=with_entropy)
    values = (logprob_T, entropy_T) if with_entropy else (logprob_T,)
    for got, expected in zip(out, values, strict=False):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    mine = with_gradients((hidden_TD, weight_VD), *out)[-2:]
    true = with_gradients(inputs, logprob_T, entropy_T if with_entropy else None)[-2:]
    for got, expected in zip(mine, true, strict=True):
        assert got.dtype == dtype
        # accumulated in fp32 and rounded once: half a unit in the last place, plus fp32 noise
        bound = torch.finfo(dtype).eps * expected.abs() + 2e-5
        assert ((got.double() - expected).abs() <= bound).all()


def test_extreme_logits_stay_finite_and_exact():
    hidden_TD = torch.tensor([[1e4], [-1e4], [1e4], [0.0]], requires_grad=True)
    weight_VD = torch.tensor([[1.0], [-1.0]] + [[0.0]] * 38, requires_grad=True)
    targets_T = torch.tensor([0, 0, 1, 39])
    logprob_T, entropy_T = fused_linear_logprob(hidden_TD, weight_VD, targets_T, with_entropy=True)
    torch.testing.assert_close(logprob_T, torch.tensor([0.0, -2e4, -2e4, -math.log(40)]))
    torch.testing.assert_close(entropy_T, torch.tensor([0.0, 0.0, 0.0, math.log(40)]))
    grads = torch.autograd.grad(logprob_T.sum() + entropy_T.sum(), (hidden_TD, weight_VD))
    assert all(grad.isfinite().all() for grad in grads)
    # rows 1 and 2 want the token of probability 0 instead of the token of probability 1
    torch.testing.assert_close(grads[0][:3], torch.tensor([[0.0], [2.0], [-2.0]]))


def test_near_ties_at_large_logits_keep_their_probabilities():
    """Logits near 1e4 that differ by 1: adding log-sum-exp to the maximum would cost the third decimal."""
    hidden_TD = torch.tensor([[8192.0, 1.0]], requires_grad=True)
    weight_VD = torch.tensor([[1.0, 0.0], [1.0, -1.0], [1.0, -2.0]], requires_grad=True)
    expected = torch.tensor([0.0, -1.0, -2.0]).log_softmax(0)
    for target in range(3):
        logprob_T, _ = fused_linear_logprob(hidden_TD, weight_VD, torch.tensor([target]))
        torch.testing.assert_close(logprob_T, expected[target : target + 1], rtol=1e-6, atol=1e-6)
        (grad_VD,) = torch.autograd.grad(logprob_T.sum(), weight_VD)
        one_hot = torch.eye(3)[target]
        torch.testing.assert_close(grad_VD[:, 1], one_hot - expected.exp(), rtol=1e-6, atol=1e-6)


def test_gradcheck():
    inputs = make(5, 3, 17)
    weights_T = torch.tensor([1.0, 0, 1, 1, 0])

    def compute(hidden_TD, weight_VD):
        options = {"weights_T": weights_T, "with_entropy": True, "temperature": 0.7, "logit_softcap": 3.0}
        return fused_linear_logprob(hidden_TD, weight_VD, inputs[2], **options)

    assert torch.autograd.gradcheck(compute, inputs[:2])


class LargestNewTensor(TorchDispatchMode):
    """Largest number of elements that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_grows_with_tokens_times_vocabulary(dtype, monkeypatch):
    """With a frozen head even its gradient is gone, and the largest tensor is the hidden states' size for any V."""
    monkeypatch.setattr(chunked, "CPU_TILE", (16, 30))
    largest = []
    for vocab in (200, 800):
        hidden_TD, weight_VD, targets_T = make(60, 8, vocab, dtype)
        weight_VD.requires_grad_(False)
        with LargestNewTensor() as probe:
            logprob_T, entropy_T = fused_linear_logprob(hidden_TD, weight_VD, targets_T, with_entropy=True)
            (logprob_T + entropy_T).sum().backward()
        largest.append(probe.numel)
    assert largest[0] == largest[1] <= 60 * 8


def test_a_frozen_input_gets_no_gradient_and_does_not_disturb_the_other():
    hidden_TD, weight_VD, targets_T = make(9, 6, 31)
    both = torch.autograd.grad(fused_linear_logprob(hidden_TD, weight_VD, targets_T)[0].sum(), (hidden_TD, weight_VD))
    frozen_head = fused_linear_logprob(hidden_TD, weight_VD.detach(), targets_T)[0]
    frozen_body = fused_linear_logprob(hidden_TD.detach(), weight_VD, targets_T)[0]
    assert torch.equal(torch.autograd.grad(frozen_head.sum(), hidden_TD)[0], both[0])
    assert torch.equal(torch.autograd.grad(frozen_body.sum(), weight_VD)[0], both[1])


@pytest.mark.parametrize("bad", [-1, 31])
def test_a_target_outside_the_vocabulary_is_an_error(bad):
    hidden_TD, weight_VD, targets_T = make(9, 6, 40)
    targets_T = targets_T % 31
    targets_T[4] = bad
    with pytest.raises(ValueError, match="leave the vocabulary of 31 tokens"):
        fused_linear_logprob(hidden_TD, weight_VD, targets_T, vocab_size=31)


def test_a_temperature_of_zero_is_an_error():
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        fused_linear_logprob(*make(2, 2, 2), temperature=0.0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_package_reference_agrees(options, monkeypatch):
    monkeypatch.setenv(registry.VARIABLE, "fused_linear_logprob=reference")
    weights_T = torch.tensor([1.0, 0, 2] * 5)
    assert_exact(*make(15, 6, 21), weights_T=weights_T, vocab_size=21, **options)
