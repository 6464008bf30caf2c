"""KL against stored top-k log-probs: K + 1 outcomes, how far they are from the whole, and what may be stored.

Shape suffixes: T tokens, V vocabulary, K stored ids.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osim_kernels import registry
from osim_kernels.fused_linear_kl import chunked, fused_linear_kl, fused_linear_kl_top_k, top_k, top_k_triton, triton
from osim_kernels.fused_linear_kl.divergence import Scaling
from osim_kernels.proof.sanitizer import checked
from tests.kernels.test_fused_linear_kl import distribution, divergence_by_definition, make, with_gradients
from tests.support.mutate import mutated

pytestmark = pytest.mark.usefixtures("poisoned_empty")

KINDS = ("forward", "reverse", "jsd")
SMALL = triton.Config(16, 32, 16, 4, 2)
OPTIONS = [{}, {"beta": 0.2}, {"student_temperature": 0.6}, {"student_softcap": 2.0, "student_temperature": 1.3}]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Odd tiles, so that a row's ids fall into many of them; several parts, of several blocks, and chunks."""
    monkeypatch.setattr(chunked, "CPU_TILE", (7, 13))
    for table in ("FORWARD", "BACKWARD"):
        monkeypatch.setattr(top_k_triton, table, dict.fromkeys(getattr(top_k_triton, table), SMALL))
    monkeypatch.setattr(triton, "PROGRAMS", 4)
    monkeypatch.setattr(top_k_triton, "PLACE_BLOCK", 32)
    monkeypatch.setattr(top_k_triton, "chunk_shape", lambda num_rows, vocab_rows, dtype: (24, 64))


@pytest.fixture
def triton_op(monkeypatch):
    """The public op with the Triton implementation, which the registry never picks for CPU tensors."""
    monkeypatch.setattr(registry.Op, "select", lambda *args, **case: top_k_triton.bucket_logprobs_triton)


def on(device, operands):
    return [x.detach().to(device).requires_grad_(x.requires_grad) for x in operands]


def stored(operands, k, vocab_size=None):
    """(ids, log-probs) of the teacher's k best tokens."""
    best = distribution(*operands[2:], vocab_size=vocab_size).topk(k)
    return best.indices, best.values


def buckets(log_TV, ids_TK):
    """fp64 log-probs of the ids and of the rest, by listing the rest."""
    rows = []
    for log_V, ids_K in zip(log_TV, ids_TK, strict=True):
        rest = torch.ones(len(log_V), dtype=torch.bool)
        rest[ids_K] = False
        rows.append(torch.cat((log_V[ids_K], log_V[rest].logsumexp(0, keepdim=True))))
    return torch.stack(rows)


def truth(operands, ids_TK, *, divergence, beta=0.5, vocab_size=None, student_temperature=1.0, student_softcap=None):
    student_TD, student_VD = (x.detach().double().requires_grad_() for x in operands[:2])
    log_q = distribution(student_TD, student_VD, student_temperature, student_softcap, vocab_size)
    log_p = distribution(*operands[2:], vocab_size=vocab_size)
    value_T = divergence_by_definition(buckets(log_p, ids_TK), buckets(log_q, ids_TK), divergence, beta)
    return with_gradients(value_T, (student_TD, student_VD))


def assert_exact(operands, ids_TK, logprobs_TK, tolerance=1e-10, **options):
    mine = with_gradients(fused_linear_kl_top_k(*operands[:2], ids_TK, logprobs_TK, **options), operands[:2])
    true = truth([x.cpu() for x in operands], ids_TK.cpu(), **options)
    for name, got, expected in zip(("value", "dhidden", "dhead"), mine, true, strict=True):
        error = (got.double().cpu() - expected).abs().max() / expected.abs().max().clamp(min=1.0)
        assert error <= tolerance, f"{name} is off by {error:.2e}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("num_tokens", "vocab", "k"), [(1, 2, 1), (23, 101, 5), (9, 40, 20)], ids=str)
@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_equals_the_listed_buckets_in_fp64(kind, options, num_tokens, vocab, k, implementation, monkeypatch):
    monkeypatch.setenv(registry.VARIABLE, f"fused_linear_kl_top_k={implementation}")
    operands = make(num_tokens, vocab)
    assert_exact(operands, *stored(operands, k), divergence=kind, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_operands(kind, dtype):
    operands = make(20, 60, dtype, spread=0.3)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2  # bf16 gradients are rounded once
    assert_exact(operands, *stored(operands, 6), tolerance, divergence=kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3]], ids=str)
@pytest.mark.parametrize(("num_tokens", "vocab", "k"), [(1, 2, 1), (21, 101, 8)], ids=str)
def test_triton_equals_the_listed_buckets(kind, options, num_tokens, vocab, k, device, triton_op):
    operands = on(device, make(num_tokens, vocab, torch.float32))
    assert_exact(operands, *stored(operands, k), 5e-6, divergence=kind, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_triton_rounds_16_bit_gradients_once(dtype, device, triton_op):
    operands = on(device, make(20, 60, dtype, 24, 16, spread=0.3))
    ids_TK, logprobs_TK = stored(operands, 6)
    value_T, *grads = with_gradients(fused_linear_kl_top_k(*operands[:2], ids_TK, logprobs_TK), operands[:2])
    true_T, *true = truth([x.cpu() for x in operands], ids_TK.cpu(), divergence="forward")
    torch.testing.assert_close(value_T.double().cpu(), true_T, rtol=1e-5, atol=1e-5)
    for grad, expected in zip(grads, true, strict=True):
        # the logits' gradient and the result are each rounded once to 16 bits
        bound = 4 * torch.finfo(dtype).eps * expected.abs().max()
        assert ((grad.double().cpu() - expected).abs() <= bound).all()


def buckets_with_gradients(compute, operands, ids_NK, vocab_size=None, softcap=None):
    """Bucket log-probs and gradients from random incoming ones, empty buckets (-inf) as 0 with gradient 0."""
    hidden_ND, weight_VD = operands[:2]
    logprobs_NL = compute(
        hidden_ND,
        weight_VD,
        ids_NK,
        real_rows=vocab_size or len(weight_VD),
        group=None,
        student=Scaling(0.7, softcap),
    )
    generator = torch.Generator().manual_seed(5)
    grad_NL = torch.randn(logprobs_NL.shape, generator=generator).to(logprobs_NL)
    grads = torch.autograd.grad(logprobs_NL, operands[:2], grad_NL)
    return logprobs_NL.isfinite(), logprobs_NL.nan_to_num(neginf=0.0), *grads


def assert_buckets(operands, ids_NK, compute=None, **options):
    true_operands = [x.detach().cpu().double().requires_grad_() for x in operands[:2]]
    true = buckets_with_gradients(top_k.bucket_logprobs_chunked, true_operands, ids_NK.cpu(), **options)
    mine = buckets_with_gradients(compute or top_k_triton.bucket_logprobs_triton, operands, ids_NK, **options)
    assert torch.equal(mine[0].cpu(), true[0])
    for got, expected in zip(mine[1:], true[1:], strict=True):
        torch.testing.assert_close(got.double().cpu(), expected, rtol=2e-5, atol=2e-5)


EDGES = {
    "first and last columns of tiles": [0, 31, 32, 63, 64, 95, 96, 100],
    "descending, padded between": [100, -1, 64, 63, -1, 32, 31, 0],
    "a whole tile and more": list(range(30, 70)),
    "the whole vocabulary": list(range(101)),
    "nothing but padding": [-1, -1],
    "of other ranks as well": [-5, 3, 101, 10**12, -(10**12), 70, 127, 40],
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("vocab_size", [None, 97])
def test_triton_finds_ids_wherever_they_lie(name, vocab_size, device):
    """Rows hold the ids in orders of their own; 97: a last tile of real columns, padding that would dominate."""
    operands = on(device, make(7, 101, torch.float32))
    if vocab_size:
        operands[1].data[vocab_size:] = 1e3
    ids_K = torch.tensor(EDGES[name])
    ids_NK = torch.stack([ids_K.roll(row) for row in range(7)]).to(device)
    assert_buckets(operands, ids_NK, vocab_size=vocab_size, softcap=None if vocab_size else 2.0)


def test_triton_takes_ids_and_gradients_of_any_layout(device):
    operands, ids_NK = on(device, make(7, 40, torch.float32)), torch.rand(7, 40).argsort(dim=1)[:, :3].to(device)

    def gradients(ids_NK, grad_NL):
        logprobs_NL = top_k_triton.bucket_logprobs_triton(
            *operands[:2], ids_NK, real_rows=40, group=None, student=Scaling(1.0, None)
        )
        return logprobs_NL, *torch.autograd.grad(logprobs_NL, operands[:2], grad_NL)

    grad_NL = torch.randn(7, 4, device=device)
    turned = gradients(ids_NK.T.contiguous().T, grad_NL.T.contiguous().T)
    assert all(torch.equal(x, y) for x, y in zip(turned, gradients(ids_NK, grad_NL), strict=True))


@settings(max_examples=4, deadline=None)
@given(
    num_tokens=st.integers(1, 40), vocab=st.integers(1, 130), share=st.floats(0, 1), seed=st.integers(0, 9),
)  # fmt: skip
def test_triton_equals_chunked_on_any_size(num_tokens, vocab, share, seed):
    torch.manual_seed(seed)
    ids_NK = torch.rand(num_tokens, vocab).argsort(dim=1)[:, : 1 + int(share * (vocab - 1))]
    assert_buckets(make(num_tokens, vocab, torch.float32, 4), ids_NK)


def test_triton_accesses_stay_inside_and_do_not_race():
    operands = make(21, 101, torch.bfloat16)
    with checked(hidden=operands[0], head=operands[1]):
        value_T, *grads = with_gradients(
            top_k_triton.bucket_logprobs_triton(
                *operands[:2], torch.arange(11).expand(21, 11) * 9, real_rows=101, group=None, student=Scaling(1.0, 3.0)
            ).sum(dim=1),
            operands[:2],
        )
    assert all(x.isfinite().all() for x in (value_T, *grads))


def test_triton_masked_rows_may_hold_anything(triton_op, device):
    operands = on(device, make(12, 40, torch.float32))
    weights_T = torch.tensor([1.0, 0.0, 2.0] * 4, device=device)
    ids_TK, logprobs_TK = stored(operands, 5)
    plain_T, *plain = with_gradients(fused_linear_kl_top_k(*operands[:2], ids_TK, logprobs_TK), operands[:2])
    off = weights_T == 0
    operands[0].data[off], ids_TK[off], logprobs_TK[off] = math.nan, 10**12, math.nan
    for active_rows in (None, 8):
        value_T = fused_linear_kl_top_k(
            *operands[:2], ids_TK, logprobs_TK, weights_T=weights_T, active_rows=active_rows
        )
        grads = with_gradients(value_T, operands[:2])[1:]
        torch.testing.assert_close(value_T, plain_T.masked_fill(off, 0))
        torch.testing.assert_close(grads[0], plain[0].masked_fill(off[:, None], 0))
        assert grads[1].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_the_vocabulary_stored_equals_the_full_divergence(kind):
    operands = make(12, 37)
    whole = with_gradients(fused_linear_kl(*operands, divergence=kind), operands[:2])
    mine = with_gradients(fused_linear_kl_top_k(*operands[:2], *stored(operands, 37), divergence=kind), operands[:2])
    for got, expected in zip(mine, whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    single = [x.detach().float() for x in operands]
    whole_T = fused_linear_kl(*single, divergence=kind)
    ids_TK, logprobs_TK = stored(single, 37)
    # fp32 leaves a stored tail of about 1e-7, which TAIL_FLOOR keeps from costing more than 30e-7
    torch.testing.assert_close(
        fused_linear_kl_top_k(*single[:2], ids_TK, logprobs_TK.float(), divergence=kind), whole_T, rtol=1e-5, atol=2e-5
    )


@settings(max_examples=25, deadline=None)
@given(vocab=st.integers(2, 60), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_forward_falls_short_of_the_whole_by_the_tails_own_divergence(vocab, share, seed):
    """Chain rule of relative entropy (Cover and Thomas, theorem 2.5.3)."""
    torch.manual_seed(seed)
    operands = make(6, vocab)
    k = 1 + int(share * (vocab - 2))
    ids_TK, logprobs_TK = stored(operands, k)
    short_T = fused_linear_kl_top_k(*operands[:2], ids_TK, logprobs_TK)
    whole_T = fused_linear_kl(*operands)
    log_p, log_q = distribution(*operands[2:]), distribution(*operands[:2])
    rest = torch.ones_like(log_p, dtype=torch.bool).scatter(1, ids_TK, False)
    tail_p, tail_q = (x[rest].view(6, -1) for x in (log_p, log_q))
    within_T = divergence_by_definition(tail_p.log_softmax(-1), tail_q.log_softmax(-1), "forward", 0.5)
    torch.testing.assert_close(whole_T - short_T, tail_p.exp().sum(-1) * within_T, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_outcomes_never_raises_a_divergence(kind):
    """Data processing: more stored ids, never less divergence, and never more than the whole."""
    operands = make(30, 50)
    values = [fused_linear_kl_top_k(*operands[:2], *stored(operands, k), divergence=kind) for k in (1, 2, 8, 30, 50)]
    values.append(fused_linear_kl(*operands, divergence=kind))
    assert all((less <= more + 1e-12).all() for less, more in itertools.pairwise(values))
    assert values[0].min() >= -1e-12


def test_the_tail_keeps_its_digits_when_it_is_tiny():
    """A student sure of the stored token: 1 - q would be 0 in fp32, summing the rest gives log q_tail = -40 + log 9."""
    student_TD = torch.tensor([[40.0]], requires_grad=True)
    student_VD = torch.tensor([[1.0]] + [[0.0]] * 9)
    logprobs_NL = top_k.bucket_logprobs_chunked(
        student_TD, student_VD, torch.tensor([[0]]), real_rows=10, group=None, student=chunked.Scaling(1.0, None)
    )
    torch.testing.assert_close(logprobs_NL[0, 1].item(), math.log(9) - 40, rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(logprobs_NL[0, 1], student_TD)
    torch.testing.assert_close(grad.item(), -1.0)  # d log q_tail / d z_0 = -q_0


@pytest.mark.parametrize("kind", KINDS)
def test_short_rows_are_padded_and_padding_changes_nothing(kind):
    operands = make(10, 40)
    ids_TK, logprobs_TK = stored(operands, 4)
    padded_ids = torch.cat((ids_TK[:, :2], torch.full((10, 3), -1), ids_TK[:, 2:]), dim=1)
    padded = torch.cat((logprobs_TK[:, :2], torch.full((10, 3), math.nan), logprobs_TK[:, 2:]), dim=1)
    mine = with_gradients(fused_linear_kl_top_k(*operands[:2], padded_ids, padded, divergence=kind), operands[:2])
    plain = with_gradients(fused_linear_kl_top_k(*operands[:2], ids_TK, logprobs_TK, divergence=kind), operands[:2])
    for got, expected in zip(mine, plain, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_rows_and_padded_vocabulary(kind):
    operands = make(12, 40)
    operands[1].data[33:], operands[3][33:] = 1e3, 1e3
    weights_T = torch.tensor([1.0, 0.0, 2.0] * 4)
    ids_TK, logprobs_TK = stored(operands, 5, vocab_size=33)
    ids_TK[weights_T == 0], logprobs_TK[weights_T == 0] = 10**6, math.nan
    options = {"divergence": kind, "vocab_size": 33, "weights_T": weights_T}
    value_T = fused_linear_kl_top_k(*operands[:2], ids_TK, logprobs_TK, **options)
    grads = torch.autograd.grad(value_T.sum(), operands[:2])
    on = weights_T != 0
    kept = [operands[0][on], operands[1], operands[2][on], operands[3]]
    expected = truth(kept, ids_TK[on], divergence=kind, vocab_size=33)
    torch.testing.assert_close(value_T[on], expected[0])
    assert (value_T[~on] == 0).all() and (grads[0][~on] == 0).all() and (grads[1][33:] == 0).all()


def test_gradcheck():
    operands = make(5, 17, student=3, teacher=4)
    ids_TK, logprobs_TK = stored(operands, 4)
    for kind in KINDS:
        assert torch.autograd.gradcheck(
            lambda h, w, kind=kind: fused_linear_kl_top_k(
                h, w, ids_TK, logprobs_TK, divergence=kind, student_softcap=3.0, student_temperature=0.7
            ),
            operands[:2],
        )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("all_N1 = grad_NL.sum(dim=1, keepdim=True)", "all_N1 = grad_NL[:, :-1].sum(dim=1, keepdim=True)"),
        ("ids_grad_NK = grad_NL[:, :-1] - all_N1 *", "ids_grad_NK = grad_NL[:, :-1] + all_N1 *"),
        ("logits_BC = _overwrite(logits_BC", "_overwrite(logits_BC"),
        ("place_BK = ids_BK - columns.start", "place_BK = ids_BK"),
        ("sub_(log_q_BC.exp_()", "add_(log_q_BC.exp_()"),
    ],
)
def test_planted_faults_are_caught(old, new, monkeypatch):
    mutant = mutated(top_k, old, new)
    monkeypatch.setattr(top_k, "_BucketLogprobs", mutant._BucketLogprobs)
    operands = make(20, 60)
    with pytest.raises(AssertionError):
        assert_exact(operands, *stored(operands, 5), divergence="forward")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("slot_N += tl.where(inside_N, before_N,", "slot_N += tl.where(inside_N, 0,"),
        ("while tl.min(id_N) < edge:", "while tl.max(id_N) < edge:"),
        ("mask=id_N < edge)", "mask=id_N > -2)"),
        ('tl.where(is_id_NC, float("-inf"), logits_NC)', "tl.where(is_id_NC, 0.0, logits_NC)"),
        ("tl.minimum(log_q_NC - tail_N1, 0.0)", "tl.minimum(log_q_NC, 0.0)"),
        ("mask=real & (column >= 0)", "mask=real"),
        ("mask=real & (column >= 0) & (column < num_columns)", "mask=real & (column >= 0) & (column < 32)"),
        ("ids_grad_NK * softcap_slope(picked_NK, student)", "ids_grad_NK"),
        (".scatter_(1, order_NL, picked_NL)", ".copy_(picked_NL)"),
    ],
)  # fmt: skip
def test_planted_faults_in_triton_are_caught(old, new, monkeypatch):
    mutant = mutated(top_k_triton, old, new)
    for name in ("FORWARD", "BACKWARD", "PLACE_BLOCK", "chunk_shape"):
        monkeypatch.setattr(mutant, name, getattr(top_k_triton, name))
    operands, ids_NK = make(18, 101, torch.float32), torch.rand(18, 101).argsort(dim=1)[:, :5]
    with pytest.raises(AssertionError), checked(hidden=operands[0], head=operands[1]):
        assert_buckets(operands, ids_NK, mutant.bucket_logprobs_triton, softcap=2.0)


def test_bad_stores_are_errors():
    operands = make(4, 9)
    ids_TK, logprobs_TK = stored(operands, 3)

    def expect(message, ids=ids_TK, logprobs=logprobs_TK, **options):
        with pytest.raises(ValueError, match=message):
            fused_linear_kl_top_k(*operands[:2], ids, logprobs, **options)

    twice = ids_TK.clone()
    twice[2, 1] = twice[2, 0]
    expect("stored ids repeat within a row", twice)
    outside = ids_TK.clone()
    outside[1, 0] = 9
    expect("leave the vocabulary of 9", outside)
    expect("sum to a mass of", logprobs=torch.zeros_like(logprobs_TK))
    expect("must both be", logprobs=logprobs_TK[:, :2])
    expect("ids must be int64", ids_TK.int())
    expect("beta must lie between 0 and 1", divergence="jsd", beta=0.0)
