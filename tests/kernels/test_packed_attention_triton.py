"""packed_attention in Triton equals the fp64 truth, forward and gradients, whatever the mask; FA3's call.

Blocks are small in most tests, so that short rows have full, masked and partial ones of both sizes.
Shape suffixes: T query rows, S key rows, H query heads, G key/value heads, D head dimension.
"""

import os
import subprocess
import sys
import types
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osim_kernels.packed_attention import Segments, backward, blocks, fa3, forward
from osim_kernels.packed_attention import _op as op
from osim_kernels.packed_attention import triton as ours
from osim_kernels.packed_attention.reference import packed_attention_reference
from osim_kernels.packed_attention.tiles import TileCapacity, build_tile_plan
from osim_kernels.proof.audit import golden_rows
from osim_kernels.proof.sanitizer import KernelFault, checked
from tests.support.mutate import mutated

pytestmark = pytest.mark.usefixtures("poisoned_empty")

# of the largest element of each result, against fp64 on the same (rounded) inputs
BOUND = {torch.float32: 5e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
SMALL = ours.Configs(ours.Config(32, 16, 4, 1), ours.Config(16, 32, 4, 1), ours.Config(16, 32, 4, 1))
TREE = [-1, 0, 1, 0, -1, 2]  # 5 sees 2, 1 and 0


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(ours, "CONFIGS", dict.fromkeys(ours.CONFIGS, SMALL))


def segments_of(lengths, device, parents=None, window=None):
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    parents = None if parents is None else torch.tensor(parents)
    return Segments.from_cu_seqlens(cu_seqlens, parents, window).to(device)


def random_qkv(num_queries, num_keys, heads, kv_heads, head_dim, dtype, device):
    shapes = (num_queries, heads), (num_keys, kv_heads), (num_keys, kv_heads)
    return tuple(torch.randn(*s, head_dim).to(device, dtype).requires_grad_() for s in shapes)


def results(attend, qkv, segments, scale, rounded_to=None):
    """Output and gradients under a fixed upstream gradient, which the truth takes `rounded_to` the kernel's dtype."""
    out_THD = attend(*qkv, segments, scale)
    upstream = torch.linspace(-1, 1, out_THD.numel(), dtype=torch.float64, device=out_THD.device).view_as(out_THD)
    upstream = upstream.to(rounded_to or out_THD.dtype).to(out_THD.dtype)
    return out_THD, *torch.autograd.grad(out_THD, qkv, upstream)


def assert_equals_reference(qkv, segments, scale=0.3):
    wide = tuple(x.detach().double().requires_grad_() for x in qkv)
    truths = results(packed_attention_reference, wide, segments, scale, qkv[0].dtype)
    mine = results(ours.packed_attention_triton, qkv, segments, scale)
    for name, result, truth in zip(("out", "dq", "dk", "dv"), mine, truths, strict=True):
        assert result.dtype == qkv[0].dtype and result.shape == truth.shape
        error = (result.double() - truth).abs().max() / truth.abs().max().clamp(min=1.0)
        assert error <= BOUND[qkv[0].dtype], f"{name} is off by {error:.2e}"


def check(lengths, device, *, heads=1, kv_heads=1, head_dim=64, dtype=torch.float32, parents=None, window=None):
    segments = segments_of(lengths, device, parents, window)
    rows = sum(lengths)
    assert_equals_reference(random_qkv(rows, rows, heads, kv_heads, head_dim, dtype, device), segments)


# values


@pytest.mark.parametrize("dtype", BOUND, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_shipped_configurations(head_dim, dtype, device):
    check([140, 1, 0, 37], device, head_dim=head_dim, dtype=dtype)


@pytest.mark.parametrize("kv_heads", [8, 4, 2, 1])
def test_grouped_heads(small_blocks, kv_heads, device):
    check([9, 20], device, heads=8, kv_heads=kv_heads)


@pytest.mark.parametrize(
    "lengths", [[1], [1, 1, 1], [0, 7, 0, 0, 63, 1, 0, 0], [33, 70, 5], [2] * 64], ids=lambda n: f"{len(n)}"
)
def test_lengths_of_documents(small_blocks, lengths, device):
    check(lengths, device, dtype=torch.bfloat16)


@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize("parents", [None, TREE])
def test_windows_and_shared_prefixes(small_blocks, parents, window, device):
    check([34, 17, 5, 20, 1, 9], device, parents=parents, window=window)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.data())
def test_any_lengths_trees_and_windows(small_blocks, device, lengths, data):
    parents = [data.draw(st.integers(-1, segment - 1)) for segment in range(len(lengths))]
    window = data.draw(st.sampled_from([None, 3, 20]))
    if sum(lengths):
        check(lengths, device, parents=parents, window=window)


@pytest.mark.parametrize("parents", [None, [-1, 0, 1]])
def test_context_parallel_ranks_together_equal_one_rank(small_blocks, parents, device):
    query, key, value = random_qkv(48, 48, 2, 1, 64, torch.float32, device)
    cu_seqlens = torch.tensor([0, 11, 30, 45])
    parents = None if parents is None else torch.tensor(parents)
    whole = Segments.from_cu_seqlens(cu_seqlens, parents).to(device)
    truth, *true_grads = results(packed_attention_reference, (query, key, value), whole, 0.35)
    upstream = torch.linspace(-1, 1, truth.numel(), device=device).view_as(truth)
    summed = [torch.zeros_like(key), torch.zeros_like(value)]
    for rank in range(2):
        chunks = [(c * 12, (c + 1) * 12) for c in (rank, 3 - rank)]
        rows = torch.cat([torch.arange(*chunk) for chunk in chunks])
        local_query = query.detach()[rows].requires_grad_()
        segments = Segments.context_parallel(cu_seqlens, chunks, parents).to(device)
        out = ours.packed_attention_triton(local_query, key, value, segments, 0.35)
        torch.testing.assert_close(out, truth[rows])
        grads = torch.autograd.grad(out, (local_query, key, value), upstream[rows])
        torch.testing.assert_close(grads[0], true_grads[0][rows])
        summed = [total + grad for total, grad in zip(summed, grads[1:], strict=True)]
    torch.testing.assert_close(summed, true_grads[1:])


def test_a_shared_prefix_equals_every_sequence_alone(small_blocks, device):
    """Loss and gradients, the prompt's summed over the copies that each unshared sequence carries of it."""
    lengths = [37, 11, 9, 20]
    shared = segments_of(lengths, device, parents=[-1, 0, 0, 0])
    qkv = random_qkv(sum(lengths), sum(lengths), 2, 1, 64, torch.float32, device)
    rows = torch.arange(sum(lengths)).split(lengths)
    copied = torch.cat([part for reply in rows[1:] for part in (rows[0], reply)])
    apart = segments_of([37 + reply for reply in lengths[1:]], device)
    weight = torch.randn(sum(lengths), 2, 64, device=device)
    once = torch.where(torch.arange(sum(lengths))[:, None, None] < 37, 1 / 3, 1.0).to(device)  # the prompt comes thrice

    loss = (ours.packed_attention_triton(*qkv, shared, 0.2) * weight).sum()
    unshared = ours.packed_attention_triton(*(x[copied] for x in qkv), apart, 0.2)
    truth = (unshared * (weight * once)[copied]).sum()
    torch.testing.assert_close(loss, truth)
    torch.testing.assert_close(torch.autograd.grad(loss, qkv), torch.autograd.grad(truth, qkv), atol=2e-5, rtol=1e-5)


def test_rows_that_see_nothing_are_zero_and_pass_no_gradient(small_blocks, device):
    qkv = random_qkv(40, 40, 2, 2, 64, torch.float32, device)
    segments = Segments(((2, 20, 2, 20, 0), (25, 35, 25, 30, 3)), None, torch.device(device))
    out, *grads = results(ours.packed_attention_triton, qkv, segments, 1.0)
    blind = [0, 1, *range(20, 28), *range(35, 40)]
    assert (out[blind] == 0).all() and (grads[0][blind] == 0).all() and (out[[2, 19, 28, 34]] != 0).all()
    assert all((grad[[0, 1, 22, 30, 39]] == 0).all() for grad in grads[1:])
    assert_equals_reference(qkv, segments)
    _, lse_HT = ours.launch_forward(*(x.detach() for x in qkv), segments, 1.0)
    assert (lse_HT[:, blind] == -torch.inf).all() and lse_HT[:, 2:20].isfinite().all()


def test_spare_rows_of_a_padded_plan_change_no_bit(small_blocks, device):
    lengths = [30, 0, 21]
    qkv = random_qkv(51, 51, 2, 1, 64, torch.float32, device)
    exact, padded = (segments_of(lengths, device) for _ in range(2))
    before = results(ours.packed_attention_triton, qkv, exact, 0.3)
    for key in exact._plans:
        capacity = TileCapacity.of_segments(51, 8, key[2], key[3])
        padded._plans[key] = build_tile_plan(padded.spans, *key, capacity=capacity).to(device)
        assert len(padded._plans[key].query_tiles) > len(exact._plans[key].query_tiles)
    after = results(ours.packed_attention_triton, qkv, padded, 0.3)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_two_runs_give_the_same_bits(small_blocks, device):
    segments = segments_of([40, 20], device, parents=[-1, 0])
    qkv = random_qkv(60, 60, 2, 1, 64, torch.bfloat16, device)
    one, other = (results(ours.packed_attention_triton, qkv, segments, 0.3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_strided_and_misaligned_inputs(small_blocks, device):
    qkv_THD = torch.randn(50 * 3 * 64 + 1, device=device)[1:].view(50, 3, 64).requires_grad_()
    assert_equals_reference(
        tuple(x.detach().requires_grad_() for x in qkv_THD.split(1, dim=1)), segments_of([50], device)
    )


@pytest.mark.parametrize(("num_queries", "num_keys"), [(0, 0), (0, 3), (3, 0)])
def test_no_rows(num_queries, num_keys, device):
    qkv = random_qkv(num_queries, num_keys, 2, 1, 64, torch.float32, device)
    out, *grads = results(ours.packed_attention_triton, qkv, Segments((), None, torch.device(device)), 0.3)
    assert [len(result) for result in (out, *grads)] == [num_queries, num_queries, num_keys, num_keys]
    assert all((result == 0).all() for result in (out, *grads))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", BOUND, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("window", [None, 100])
def test_wide_grid(head_dim, dtype, window, device):
    check([140, 40, 1, 70, 0, 33], device, heads=2, head_dim=head_dim, dtype=dtype, window=window, parents=TREE)


# memory


@pytest.mark.parametrize("parents", [None, TREE])
def test_nothing_is_read_or_written_outside_its_tensor(small_blocks, parents, device):
    segments = segments_of([34, 17, 5, 20, 1, 9], device, parents, window=30)
    qkv = random_qkv(86, 86, 2, 1, 64, torch.bfloat16, device)
    if device.type == "cuda":
        pytest.skip("the checks watch the interpreter")
    with checked(q=qkv[0], k=qkv[1], v=qkv[2]):
        results(ours.packed_attention_triton, qkv, segments, 0.3)


# mutants: these comparisons can fail


MUTANTS = {
    "query sees the next key": (blocks, "distance >= 0", "distance >= -1"),
    "query does not see itself": (blocks, "distance >= 0", "distance > 0"),
    "window one too wide": (blocks, "distance < window", "distance <= window"),
    "a diagonal block taken for a full one": (blocks, "row_start - delta + 1)", "row_start - delta + 17)"),
    "distance of the prefix ignored": (forward, "keys_K + delta, NEVER", "keys_K, NEVER"),
    "tail of a piece not masked": (forward, "keys_K < key_stop, keys_K", "keys_K < key_stop + 1, keys_K"),
    "accumulator not rescaled": (forward, "out_QD * shrink_Q[:, None]", "out_QD * 1.0"),
    "wrong key head": (forward, "kv_head = head // GROUP", "kv_head = head % (HEADS // GROUP)"),
    "a piece left out": (forward, "in range(piece_begin, piece_end)", "in range(piece_begin, piece_begin + 1)"),
    "gradient without its row sums": (backward, "d_weights_QK - sums_Q[:, None]", "d_weights_QK"),
    "scale missing from dk": (backward, "(d_key_KD * softmax_scale)", "(d_key_KD * 1.0)"),
    "a head of the group left out": (backward, "range(0, visits * GROUP)", "range(0, visits * (GROUP - 1))"),
    "rows behind a visit counted": (backward, 'query_stop, other=float("inf")', "query_stop, other=0.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparison_notices(small_blocks, monkeypatch, device, name):
    module, old, new = MUTANTS[name]
    mutant = mutated(module, old, new)
    if module is blocks:
        for user in (forward, backward):
            for function in ("sees", "full_key_blocks"):
                monkeypatch.setattr(user, function, getattr(mutant, function))
    for kernel in ("_forward_kernel", "_query_gradient_kernel", "_key_gradient_kernel"):
        if hasattr(mutant, kernel):
            monkeypatch.setattr(ours, kernel, getattr(mutant, kernel))
    with pytest.raises(AssertionError, match="is off by"):
        heads = 4 if name == "wrong key head" else 2
        check([35, 9, 20], device, heads=heads, kv_heads=heads // 2, parents=[-1, 0, 0], window=25)


def test_the_memory_checks_notice(small_blocks, monkeypatch, device):
    mutant = mutated(forward, "mask=inside_Q[:, None]", "mask=inside_Q[:, None] | True")
    monkeypatch.setattr(ours, "_forward_kernel", mutant._forward_kernel)
    qkv = tuple(x.detach() for x in random_qkv(45, 45, 1, 1, 64, torch.float32, device))
    if device.type == "cuda":
        pytest.skip("the checks watch the interpreter")
    with pytest.raises(KernelFault), checked(q=qkv[0], k=qkv[1], v=qkv[2]):
        ours.launch_forward(*qkv, segments_of([45], device), 0.3)


# compilation


def test_new_borders_compile_nothing_new():
    """Under the absent H100, in a process that compiles: two batches of other lengths, sizes of tables and tails."""
    script = """
import torch
from osim_kernels.packed_attention import Segments
from osim_kernels.packed_attention.triton import packed_attention_triton
from osim_kernels.proof import hopper
with hopper.recording() as launches:
    for rows, borders in ((4096, [0, 1, 400, 4096]), (4096, [0, 1111, 4000]), (1001, [0, 1, 2, 3, 17, 1001])):
        segments = Segments.from_cu_seqlens(torch.tensor(borders)).to(hopper.DEVICE)
        q, k, v = (
            torch.empty(rows, heads, 64, dtype=torch.bfloat16, device=hopper.DEVICE, requires_grad=True)
            for heads in (4, 2, 2)
        )
        packed_attention_triton(q, k, v, segments, 0.1).sum().backward()
print(len(launches), len({id(launch.metadata) for launch in launches}), len({launch.kernel for launch in launches}))
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["12", "4", "4"]


def test_rows_of_d_values_move_by_128_bits():
    """In the golden rows, which the compile audit holds against the compiler."""
    rows = golden_rows("packed_attention")
    for case, kernels in rows.items():
        for name, kernel in kernels.items():
            count = kernel["counts"]
            assert not any(count.get(f"{op}_{bits}") for op in ("ldg", "stg") for bits in (8, 16)), (case, name)
            assert count["ldg_128" if name == "_row_sums_kernel" else "stg_128"] > 0, (case, name)
    assert len({name for kernels in rows.values() for name in kernels}) == 4


# bad input, and who runs where


def test_bad_input_names_itself(device):
    segments = segments_of([4], device)
    with pytest.raises(ValueError, match="softmax_scale must be positive, got -1"):
        ours.packed_attention_triton(*random_qkv(4, 4, 1, 1, 64, torch.float32, device), segments, -1.0)
    with pytest.raises(ValueError, match="head_dim up to 256, not 264"):
        ours.packed_attention_triton(*random_qkv(4, 4, 1, 1, 264, torch.float32, device), segments, 1.0)
    with pytest.raises(ValueError, match="not float64"):
        ours.packed_attention_triton(*random_qkv(4, 4, 1, 1, 64, torch.float64, device), segments, 1.0)
    elsewhere = replace(segments, device=torch.device("meta"), _plans={})
    with pytest.raises(ValueError, match="segments are on meta"):
        ours.packed_attention_triton(*random_qkv(4, 4, 1, 1, 64, torch.float32, device), elsewhere, 1.0)


def test_order_of_preference(monkeypatch):
    assert list(op.implementations) == ["fa3", "triton", "varlen", "sdpa", "reference"]
    refuses = {name: implementation.refuses for name, implementation in op.implementations.items()}
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert refuses["fa3"](cuda, torch.bfloat16) == "flash_attn_interface is not installed"
    assert refuses["fa3"](cuda, torch.bfloat16, one_run_each=False) == "knows no shared prefixes"
    assert refuses["triton"](cuda, torch.bfloat16, head_dim=96, one_run_each=False) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert refuses["triton"](cuda, torch.bfloat16) == "needs compute capability 9.0 or newer (TMA)"
    assert refuses["varlen"](cuda, torch.bfloat16) is None


@pytest.mark.parametrize("window", [None, 7])
def test_fa3_is_called_with_its_own_arguments(monkeypatch, window):
    seen = {}

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
        softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0, return_attn_probs=False,
    ):  # fmt: skip
        seen.update(locals())
        spans = [(*a, *a, 0) for a in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True)]
        return packed_attention_reference(q, k, v, Segments(tuple(spans), window), softmax_scale)

    module = types.SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    segments = segments_of([5, 0, 12, 3], "cpu", window=window)
    qkv = random_qkv(20, 20, 4, 2, 16, torch.float64, "cpu")
    out = fa3.packed_attention_fa3(*qkv, segments, 0.4)
    torch.testing.assert_close(out, packed_attention_reference(*qkv, segments, 0.4))
    assert seen["cu_seqlens_q"].tolist() == seen["cu_seqlens_k"].tolist() == [0, 5, 17, 20]
    assert (seen["max_seqlen_q"], seen["max_seqlen_k"], seen["softmax_scale"]) == (12, 12, 0.4)
    assert seen["causal"] is True and seen["deterministic"] is True
    assert seen["window_size"] == ((-1, 0) if window is None else (6, 0))
