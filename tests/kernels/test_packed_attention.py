"""Packed attention: every implementation that runs here equals the dense truth, and the truth equals plain SDPA.

Shape suffixes: T query rows, S key rows, H query heads, G key/value heads, D head dimension.
"""

import inspect
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.varlen import varlen_attn

from osim_kernels import registry
from osim_kernels.packed_attention import Segments, packed_attention, varlen
from osim_kernels.packed_attention.reference import packed_attention_reference
from osim_kernels.packed_attention.sdpa import packed_attention_sdpa

pytestmark = pytest.mark.usefixtures("poisoned_empty")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def aligned_at_the_end(borders):
    """Spans whose last query sees their last key, of (query_start, query_stop, key_start, key_stop)."""
    return tuple((*border, border[1] - border[3]) for border in borders)


def kernel_stand_in(query, key, value, cu_queries, cu_keys, max_q, max_k, *, scale, window_size, enable_gqa):
    """What varlen_attn promises, in plain PyTorch, and no more: rows and key gradients outside its borders, and
    queries beyond max_q of a run, hold NaN."""
    assert window_size == (-1, 0) and enable_gqa == (query.shape[1] != key.shape[1])
    assert cu_queries.dtype == cu_keys.dtype == torch.int32 and len(cu_queries) == len(cu_keys)
    assert int(cu_keys.diff().max()) <= max_k
    runs = zip(pairwise(cu_queries.tolist()), pairwise(cu_keys.tolist()), strict=True)
    spans = aligned_at_the_end([(*queries, *keys) for queries, keys in runs])
    out = packed_attention_reference(query, key, value, Segments(spans), scale)
    written = torch.zeros(len(query), dtype=torch.bool)
    for start, stop, *_ in spans:
        written[start : min(stop, start + max_q)] = True
    assert cu_keys[0] == 0 and cu_keys[-1] == len(key), "gradients of the other keys stay unwritten"
    return out.masked_fill(~written[:, None, None], torch.nan)


@pytest.fixture(params=["sdpa", "varlen"])
def attend(request, monkeypatch):
    if request.param == "sdpa":
        return packed_attention_sdpa
    monkeypatch.setattr(varlen, "varlen_attn", kernel_stand_in)
    return varlen.packed_attention_varlen


def random_qkv(num_queries, num_keys, heads, kv_heads, head_dim, dtype=torch.float64):
    shapes = (num_queries, heads), (num_keys, kv_heads), (num_keys, kv_heads)
    return tuple(torch.randn(*shape, head_dim, dtype=dtype, requires_grad=True) for shape in shapes)


def results(attend, qkv, segments, scale):
    out_THD = attend(*qkv, segments, scale)
    upstream = torch.linspace(-1, 1, out_THD.numel(), dtype=out_THD.dtype).view_as(out_THD)
    return out_THD, *torch.autograd.grad(out_THD, qkv, upstream)


def assert_equals_reference(attend, qkv, segments, scale=0.3):
    tolerance = TOLERANCE[qkv[0].dtype]
    wide = tuple(x.detach().double().requires_grad_() for x in qkv)
    truths = results(packed_attention_reference, wide, segments, scale)
    for name, mine, truth in zip(("out", "dq", "dk", "dv"), results(attend, qkv, segments, scale), truths, strict=True):
        error = (mine.double() - truth).abs().max() / truth.abs().max().clamp(min=1.0)
        assert error <= tolerance, f"{name} is off by {error:.2e}"


# the grid


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize(
    ("lengths", "heads", "kv_heads", "head_dim"),
    [
        ([1], 1, 1, 8),
        ([1, 1, 1], 2, 1, 16),
        ([0, 7, 0, 0, 63, 1, 0], 4, 2, 24),
        ([33, 100, 5], 8, 1, 32),
        ([129], 6, 3, 64),
        ([17] * 8, 8, 8, 40),
    ],
)
def test_equals_the_reference_forward_and_backward(dtype, lengths, heads, kv_heads, head_dim):
    borders = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    qkv = random_qkv(sum(lengths), sum(lengths), heads, kv_heads, head_dim, dtype)
    assert_equals_reference(packed_attention_sdpa, qkv, Segments.from_cu_seqlens(borders))


@given(
    st.lists(
        st.tuples(*[st.integers(0, 9)] * 4), min_size=0, max_size=6
    ),  # (rows skipped, queries, first key, keys) of each segment
    st.integers(0, 4),
    st.sampled_from([(1, 1), (4, 2), (8, 1)]),
)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", ["sdpa", "varlen"])
def test_any_segments_with_gaps_overlapping_keys_and_unequal_lengths(name, segments, tail, heads):
    spans, covered = [], 0
    for skipped, queries, first_key, keys in segments:
        spans.append((covered + skipped, covered + skipped + queries, first_key, first_key + keys))
        covered += skipped + queries
    qkv = random_qkv(covered + tail, 19, *heads, 8)
    if not len(qkv[0]):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "varlen_attn", kernel_stand_in)
        attend = packed_attention_sdpa if name == "sdpa" else varlen.packed_attention_varlen
        assert_equals_reference(attend, qkv, Segments(aligned_at_the_end(spans)))


def test_the_reference_equals_causal_attention_on_each_document_alone():
    query, key, value = random_qkv(30, 30, 4, 2, 16)
    borders = [0, 11, 12, 30]
    out_THD = packed_attention(query, key, value, Segments.from_cu_seqlens(torch.tensor(borders)))
    for start, stop in pairwise(borders):
        alone = F.scaled_dot_product_attention(
            *(x[start:stop].transpose(0, 1) for x in (query, key, value)), is_causal=True, enable_gqa=True
        )
        torch.testing.assert_close(out_THD[start:stop], alone.transpose(0, 1))


def test_rows_in_no_segment_give_zero_and_take_no_gradient(attend):
    qkv = random_qkv(12, 12, 2, 2, 8)
    segments = Segments(aligned_at_the_end([(2, 5, 2, 5), (5, 5, 5, 5), (7, 10, 7, 8)]))  # 7 and 8 see no key either
    out, *grads = results(attend, qkv, segments, 1.0)
    outside = [0, 1, 5, 6, 7, 8, 10, 11]
    assert (out[outside] == 0).all() and all((g[[0, 1, 5, 6, 10, 11]] == 0).all() for g in grads)
    assert (out[[2, 3, 4, 9]] != 0).all() and (grads[0][[3, 4]] != 0).any(), "the segments themselves must attend"


def test_no_document_sees_another_or_the_future(attend):
    query, key, value = (x.detach() for x in random_qkv(20, 20, 2, 1, 8))
    segments = Segments.from_cu_seqlens(torch.tensor([0, 6, 20]))
    before = attend(query, key, value, segments, 0.4)
    key, value = key.clone(), value.clone()
    key[10], value[10] = 50.0, -50.0
    changed = (attend(query, key, value, segments, 0.4) != before).flatten(1).any(1)
    assert changed.tolist() == [False] * 10 + [True] * 10


def test_default_scale_is_one_over_the_square_root_of_head_dim():
    qkv = random_qkv(9, 9, 2, 2, 25)
    segments = Segments.from_cu_seqlens(torch.tensor([0, 9]))
    torch.testing.assert_close(packed_attention(*qkv, segments), packed_attention(*qkv, segments, 0.2))


# windows and shared prefixes

TREE = [-1, 0, 0, 1, -1, 4, 3]  # parents: a prompt, two replies, a reply to a reply twice over, and another prompt


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("parents", [None, TREE])
def test_windows_and_shared_prefixes_equal_the_reference(parents, window):
    cu_seqlens = torch.tensor([0, 7, 12, 13, 16, 16, 20, 25])
    segments = Segments.from_cu_seqlens(cu_seqlens, None if parents is None else torch.tensor(parents), window)
    assert_equals_reference(packed_attention_sdpa, random_qkv(25, 25, 4, 2, 8), segments)


@pytest.mark.parametrize("window", [None, 5])
def test_a_shared_prefix_equals_every_sequence_alone(window):
    """Each leaf's whole sequence as a document of its own: outputs are equal, and gradients of shared rows are the
    sums over the documents that share them."""
    lengths, cu_seqlens = [7, 5, 1, 3, 0, 4, 5], torch.tensor([0, 7, 12, 13, 16, 16, 20, 25])
    qkv = random_qkv(25, 25, 4, 2, 8)
    segments = Segments.from_cu_seqlens(cu_seqlens, torch.tensor(TREE), window)
    out_THD, *grads = results(packed_attention_reference, qkv, segments, 0.4)
    upstream = torch.linspace(-1, 1, out_THD.numel(), dtype=out_THD.dtype).view_as(out_THD)
    expected = [torch.zeros_like(x) for x in qkv]
    for segment, length in enumerate(lengths):
        family = [segment]
        while TREE[family[0]] >= 0:
            family.insert(0, TREE[family[0]])
        rows = torch.cat([torch.arange(cu_seqlens[s], cu_seqlens[s + 1]) for s in family])
        alone = Segments.from_cu_seqlens(torch.tensor([0, len(rows)]), window=window)
        leaves = tuple(x.detach()[rows].requires_grad_() for x in qkv)
        out = packed_attention_reference(*leaves, alone, 0.4)[len(rows) - length :]
        mine = slice(int(cu_seqlens[segment]), int(cu_seqlens[segment + 1]))
        torch.testing.assert_close(out_THD[mine], out)
        for total, grad in zip(expected, torch.autograd.grad(out, leaves, upstream[mine]), strict=True):
            total.index_add_(0, rows, grad)
    for grad, total in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, total)


@pytest.mark.parametrize("parents", [[0, -1], [-1, 1], [-1, -2]])
def test_a_parent_that_is_no_earlier_segment_is_named(parents):
    with pytest.raises(ValueError, match=r"segment \d: parent -?\d is not an earlier segment"):
        Segments.from_cu_seqlens(torch.tensor([0, 2, 4]), torch.tensor(parents))


# context parallelism


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("borders", [[0, 48], [0, 5, 5, 6, 29, 30, 48], [0, 24, 48], [0, 13, 40]])
def test_context_parallel_ranks_together_equal_one_rank(attend, ranks, borders):
    """Zigzag chunks: rank r holds chunk r and chunk 2 * ranks - 1 - r. Its rows equal the whole row's, and the
    ranks' key and value gradients sum to the whole row's."""
    qkv = random_qkv(48, 48, 4, 2, 8)
    query, key, value = qkv
    cu_seqlens = torch.tensor(borders, dtype=torch.int32)
    truth, *true_grads = results(packed_attention_reference, qkv, Segments.from_cu_seqlens(cu_seqlens), 0.35)
    upstream = torch.linspace(-1, 1, truth.numel(), dtype=truth.dtype).view_as(truth)
    grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
    size = 48 // (2 * ranks)
    for rank in range(ranks):
        chunks = [(c * size, (c + 1) * size) for c in (rank, 2 * ranks - 1 - rank)]
        rows = torch.cat([torch.arange(*chunk) for chunk in chunks])
        local_query = query.detach()[rows].requires_grad_()
        segments = Segments.context_parallel(cu_seqlens, chunks)
        out = attend(local_query, key, value, segments, 0.35)
        torch.testing.assert_close(out, truth[rows])
        grads = torch.autograd.grad(out, (local_query, key, value), upstream[rows])
        torch.testing.assert_close(grads[0], true_grads[0][rows])
        grad_key, grad_value = grad_key + grads[1], grad_value + grads[2]
    torch.testing.assert_close(grad_key, true_grads[1])
    torch.testing.assert_close(grad_value, true_grads[2])


# Segments and the varlen plan


def test_segments_of_a_context_parallel_rank():
    segments = Segments.context_parallel(torch.tensor([0, 3, 10]), [(2, 6), (8, 10)])
    assert segments.spans == ((0, 1, 0, 3, -2), (1, 4, 3, 6, -2), (4, 6, 3, 10, -4))
    assert segments.one_run_each


def test_plain_packing_reaches_the_varlen_kernel_without_a_gather():
    segments = Segments.from_cu_seqlens(torch.tensor([0, 4, 4, 9], dtype=torch.int32))
    cu_queries, cu_keys, max_q, max_k, rows = varlen.runs(segments, 9, 9)
    assert cu_queries.tolist() == cu_keys.tolist() == [0, 4, 9] and max_q == max_k == 5 and rows is None
    assert varlen.runs(segments, 9, 9)[0] is cu_queries, "layers of one batch share one plan"


def test_the_stand_in_accepts_exactly_the_arguments_that_torch_does():
    real, stand_in = inspect.signature(varlen_attn).parameters, inspect.signature(kernel_stand_in).parameters
    assert list(real)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert list(stand_in)[7:] == [name for name in real if name in list(stand_in)[7:]]


def test_override_reaches_the_entry(monkeypatch):
    qkv = random_qkv(3, 3, 1, 1, 8)
    monkeypatch.setenv(registry.VARIABLE, "packed_attention=varlen")
    with pytest.raises(ValueError, match="packed_attention=varlen cannot run on cpu float64: needs a CUDA device"):
        packed_attention(*qkv, Segments.from_cu_seqlens(torch.tensor([0, 3])))
