"""Fused linear log-prob in Triton: values and gradients within derived bounds of fp64, odd sizes, memory, mutants.

Shape suffixes: T tokens, D hidden, V vocabulary.
"""

import functools
import gc
import os
import subprocess
import sys
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from osim_kernels.fused_linear_logprob import chunked
from osim_kernels.fused_linear_logprob import triton as ours
from osim_kernels.fused_linear_logprob.chunked import fused_linear_logprob_chunked
from osim_kernels.fused_linear_logprob.rows import on_active_rows
from osim_kernels.proof.sanitizer import checked
from tests.support.mutate import mutated

pytestmark = pytest.mark.usefixtures("poisoned_empty")
SMALL = ours.Config(16, 32, 16, 4, 2)


@pytest.fixture
def small_tiles(monkeypatch):
    """Few rows and columns then cross the borders of tiles, parts, groups and chunks."""
    use_small_tiles(monkeypatch.setattr)


def use_small_tiles(setattr_, module=ours):
    setattr_(module, "FORWARD", {2: SMALL, 4: SMALL})
    setattr_(module, "BACKWARD", {(size, capped): SMALL for size in (2, 4) for capped in (False, True)})
    setattr_(module, "FEWEST_PARTS", 3)
    setattr_(module, "PROGRAMS", 5)
    setattr_(module, "GROUP", 2)
    setattr_(module, "CHUNK_ROWS", 48)
    setattr_(module, "CHUNK_COLUMNS", 80)


def make(num_tokens, hidden, vocab, dtype, device, spread=1.0):
    hidden_TD = torch.randn(num_tokens, hidden).mul_(spread).to(device, dtype).requires_grad_()
    weight_VD = torch.randn(vocab, hidden).mul_(0.3).to(device, dtype).requires_grad_()
    return hidden_TD, weight_VD, torch.randint(0, vocab, (num_tokens,)).to(device)


def compare(inputs, *, compute=ours.fused_linear_logprob_triton, **options) -> float:
    """Largest error of log-probs, entropies and gradients as a share of its bound (README, Precision)."""
    hidden_TD, weight_VD, targets_T = inputs
    options = {"vocab_size": weight_VD.shape[0]} | options
    weights_T = options.get("weights_T")
    active_T = torch.ones_like(targets_T, dtype=torch.bool) if weights_T is None else weights_T != 0
    ramp_T = torch.linspace(-1.0, 2.0, len(targets_T), device=targets_T.device)
    logprob_T, entropy_T = compute(hidden_TD, weight_VD, targets_T, **options)
    gradients = [ramp_T] if entropy_T is None else [ramp_T, ramp_T.flip(0)]
    mine = (logprob_T,) if entropy_T is None else (logprob_T, entropy_T)
    grad_TD, grad_VD = torch.autograd.grad(mine, (hidden_TD, weight_VD), gradients)
    assert grad_TD.dtype == grad_VD.dtype == hidden_TD.dtype and logprob_T.dtype == torch.float32

    # whole logits in fp64
    hidden_TD, weight_VD = hidden_TD.detach().double(), weight_VD.detach().double()[: options["vocab_size"]]
    targets_T = targets_T.where(active_T, 0)
    cap, temperature = options.get("logit_softcap"), options.get("temperature", 1.0)
    logits_TV = hidden_TD @ weight_VD.T
    tanh_TV = torch.tanh(logits_TV / cap) if cap else torch.zeros_like(logits_TV)
    scaled_TV = (cap * tanh_TV if cap else logits_TV) / temperature
    logprobs_TV = scaled_TV.log_softmax(dim=1)
    p_TV, p_log_p_TV = logprobs_TV.exp(), torch.special.entr(logprobs_TV.exp())
    true_T, uncertainty_T = logprobs_TV.gather(1, targets_T[:, None])[:, 0], p_log_p_TV.sum(1)
    hit_TV = torch.nn.functional.one_hot(targets_T, weight_VD.shape[0]).double()
    g_T1 = (ramp_T * active_T).double()[:, None]
    e_T1 = torch.zeros_like(g_T1) if entropy_T is None else (ramp_T.flip(0) * active_T).double()[:, None]
    dlogits_TV = (g_T1 * (hit_TV - p_TV) + e_T1 * (p_log_p_TV - p_TV * uncertainty_T[:, None])) * (1 - tanh_TV**2)
    dlogits_TV /= temperature

    # the bounds
    single, half = 2.0**-24, torch.finfo(grad_TD.dtype).eps / 2
    sizes_TV = hidden_TD.abs() @ weight_VD.abs().T
    noise_TV = 2 * hidden_TD.shape[1] ** 0.5 * sizes_TV + (8 * cap if cap else 0.0)
    noise_T = single * ((noise_TV / temperature + 2 * scaled_TV.abs()).amax(1) + 8)
    size_TV = g_T1.abs() * (hit_TV + p_TV) + e_T1.abs() * (p_log_p_TV + p_TV * (uncertainty_T[:, None] + 1))
    size_TV /= temperature
    slack_T = half + noise_T * (6 + (2 * temperature / cap if cap else 0.0))
    tiny = torch.finfo(grad_TD.dtype).tiny * half  # what rounding a subnormal to 16 bits may lose
    error_TV = size_TV * slack_T[:, None] + tiny
    depth = 2 * single * max(size_TV.shape) ** 0.5
    shares = [_share(logprob_T, true_T * active_T, (2 * noise_T + 4 * single * true_T.abs()))]
    if entropy_T is not None:
        bound_T = 4 * noise_T * (1 + uncertainty_T) + 8 * single * p_TV.shape[1] ** 0.5
        shares.append(_share(entropy_T, uncertainty_T * active_T, bound_T))
    for got, left, size, error, right in (
        (grad_TD, dlogits_TV, size_TV, error_TV, weight_VD),
        (grad_VD[: len(weight_VD)], dlogits_TV.T, size_TV.T, error_TV.T, hidden_TD),
    ):
        bound = error @ right.abs() + depth * (size @ right.abs()) + half * (left @ right).abs() + tiny
        shares.append(_share(got, left @ right, bound))
    assert (grad_VD[len(weight_VD) :] == 0).all() and (logprob_T[~active_T] == 0).all()
    return max(shares)


def _share(got, expected, bound) -> float:
    assert got.isfinite().all()
    return ((got.double() - expected).abs() / bound).max().item() if got.numel() else 0.0


OPTIONS = {
    "plain": {},
    "entropy": {"with_entropy": True},
    "cold": {"temperature": 0.05},
    "hot entropy": {"temperature": 50.0, "with_entropy": True},
    "softcap": {"logit_softcap": 2.5},
    "softcap cold entropy": {"logit_softcap": 2.5, "temperature": 0.4, "with_entropy": True},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_fp64_within_the_bounds(small_tiles, device, options, dtype):
    assert compare(make(129, 40, 203, dtype, device), **options) <= 1


@pytest.mark.parametrize(
    "size", [(1, 8, 1), (1, 16, 33), (2, 8, 31), (63, 24, 64), (49, 72, 161), (16, 32, 32)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_odd_sizes(small_tiles, device, size, dtype):
    assert compare(make(*size, dtype, device), with_entropy=True, logit_softcap=5.0) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_shipped_tiles(device, dtype):
    """The tables as they are, at a vocabulary of several parts."""
    assert compare(make(130, 72, 550, dtype, device), with_entropy=True) <= 1
    assert compare(make(130, 72, 550, dtype, device), logit_softcap=3.0, temperature=0.7) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_candidate(device, monkeypatch, dtype, options):
    for config in ours.CANDIDATES[dtype.itemsize]:
        monkeypatch.setitem(ours.FORWARD, dtype.itemsize, config)
        for capped in (False, True):
            monkeypatch.setitem(ours.BACKWARD, (dtype.itemsize, capped), config)
        assert compare(make(257, 136, 1031, dtype, device), **options) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"with_entropy": True}, {"logit_softcap": 30.0}], ids=str)
def test_logits_near_1e4(small_tiles, device, dtype, options):
    inputs = make(40, 64, 100, dtype, device, spread=2e3)
    assert (inputs[0] @ inputs[1].T).abs().max() > 1e4
    assert compare(inputs, **options) <= 1


def test_near_ties_at_large_logits_keep_their_probabilities(small_tiles, device):
    """Logits of 8192, 8191 and 8190: adding log-sum-exp to the maximum would cost the third decimal."""
    hidden_TD = torch.tensor([[8192.0, 1.0, 0, 0]] * 3, device=device, requires_grad=True)
    weight_VD = torch.tensor([[1.0, 0, 0, 0], [1.0, -1, 0, 0], [1.0, -2, 0, 0]], device=device, requires_grad=True)
    targets_T = torch.arange(3, device=device)
    logprob_T, _ = ours.fused_linear_logprob_triton(hidden_TD, weight_VD, targets_T, vocab_size=3)
    expected = torch.tensor([0.0, -1.0, -2.0]).log_softmax(0)
    torch.testing.assert_close(logprob_T.cpu(), expected, rtol=1e-6, atol=1e-6)


def test_targets_at_the_edges_of_tiles_and_of_the_vocabulary(small_tiles, device):
    edges = [0, 15, 16, 31, 32, 33, 63, 64, 79, 80, 95, 96, 159, 160, 161]
    hidden_TD, weight_VD, _ = make(len(edges), 16, 162, torch.float32, device)
    assert compare((hidden_TD, weight_VD, torch.tensor(edges, device=device))) <= 1


@pytest.mark.parametrize("real", [1, 32, 33, 199])
def test_padded_vocabulary_rows_get_no_probability_and_no_gradient(small_tiles, device, real):
    hidden_TD, weight_VD, targets_T = make(20, 16, 200, torch.bfloat16, device)
    weight_VD.data[real:] = 1e3  # would dominate every softmax
    assert compare((hidden_TD, weight_VD, targets_T % real), vocab_size=real, with_entropy=real > 1) <= 1


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("told", [False, True], ids=["counts", "is told"])
def test_rows_of_weight_zero_are_skipped_whatever_their_target(small_tiles, device, share, told):
    hidden_TD, weight_VD, targets_T = make(70, 16, 90, torch.float32, device)
    weights_T = (torch.linspace(0, 1, 70, device=device).roll(23) > 1 - share).float() * 0.5 + 0.5 * (share == 1.0)
    targets_T[weights_T == 0] = -100
    active_rows = int((weights_T != 0).sum()) if told else None
    options = {"weights_T": weights_T, "active_rows": active_rows, "with_entropy": True}
    assert compare((hidden_TD, weight_VD, targets_T), **options) <= 1


def test_a_wrong_number_of_active_rows_is_an_error(device):
    inputs, weights_T = make(9, 16, 31, torch.float32, device), torch.tensor([1.0, 0, 1] * 3, device=device)
    call = {"weights_T": weights_T, "active_rows": 5, "vocab_size": 31}
    if device.type == "cpu":
        with pytest.raises(ValueError, match="active_rows is 5, but 6 weights are not 0"):
            ours.fused_linear_logprob_triton(*inputs, **call)
    else:
        assert ours.fused_linear_logprob_triton(*inputs, **call)[0][weights_T != 0].isnan().any()


def test_with_the_number_of_active_rows_nothing_synchronises():
    """A meta tensor has no values, so asking for one raises, as waiting for a GPU would."""

    def rows(active_rows):
        hidden_TD = torch.empty(10, 4, device="meta")
        targets_T, weights_T = torch.zeros(10, dtype=torch.int64, device="meta"), torch.empty(10, device="meta")
        compute = lambda hidden_ND, targets_N: (hidden_ND.sum(1) + targets_N, None)  # noqa: E731
        return on_active_rows(compute, hidden_TD, targets_T, weights_T, active_rows, 100)[0].shape

    assert rows(7) == (10,)
    with pytest.raises(NotImplementedError, match=r"torch\.nonzero"):
        rows(None)


def test_a_frozen_input_gets_no_gradient_and_does_not_disturb_the_other(small_tiles, device):
    hidden_TD, weight_VD, targets_T = make(60, 16, 90, torch.bfloat16, device)

    def logprobs(hidden_TD, weight_VD):
        return ours.fused_linear_logprob_triton(hidden_TD, weight_VD, targets_T, vocab_size=90)[0].sum()

    both = torch.autograd.grad(logprobs(hidden_TD, weight_VD), (hidden_TD, weight_VD))
    assert torch.equal(torch.autograd.grad(logprobs(hidden_TD, weight_VD.detach()), hidden_TD)[0], both[0])
    assert torch.equal(torch.autograd.grad(logprobs(hidden_TD.detach(), weight_VD), weight_VD)[0], both[1])


def test_two_runs_give_equal_bits(small_tiles, device):
    hidden_TD, weight_VD, targets_T = make(100, 24, 130, torch.bfloat16, device)

    def run():
        out = ours.fused_linear_logprob_triton(hidden_TD, weight_VD, targets_T, vocab_size=130, with_entropy=True)
        return *out, *torch.autograd.grad(sum(x.sum() for x in out), (hidden_TD, weight_VD))

    assert all(torch.equal(once, again) for once, again in zip(run(), run(), strict=True))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_shape_and_options(data):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.MonkeyPatch.context() as patch:
        use_small_tiles(patch.setattr)
        rows, depth, vocab = (data.draw(st.integers(1, high)) for high in (100, 6, 200))
        dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
        torch.manual_seed(data.draw(st.integers(0, 99)))
        hidden_TD, weight_VD, targets_T = make(rows, 8 * depth, vocab, dtype, device)
        real = data.draw(st.integers(1, vocab))
        options = {
            "vocab_size": real,
            "with_entropy": data.draw(st.booleans()),
            "temperature": data.draw(st.sampled_from([0.3, 1.0, 3.0])),
            "logit_softcap": data.draw(st.sampled_from([None, 4.0])),
            "weights_T": data.draw(st.sampled_from([None, (torch.rand(rows) > 0.4).float().to(device)])),
        }
        assert compare((hidden_TD, weight_VD, targets_T % real), **options) <= 1


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["softcap cold entropy"]], ids=["plain", "all"])
def test_no_stray_access_and_no_race(small_tiles, device, options):
    if device.type != "cpu":
        pytest.skip("the sanitizer watches the interpreter")
    hidden_TD, weight_VD, targets_T = make(50, 24, 101, torch.bfloat16, device)
    with checked(hidden=hidden_TD, head=weight_VD, targets=targets_T):
        out = ours.fused_linear_logprob_triton(hidden_TD, weight_VD, targets_T, vocab_size=101, **options)
        torch.autograd.grad([x.sum() for x in out if x is not None], (hidden_TD, weight_VD))


MUTANTS = {
    "last vocabulary block dropped": ("tl.cdiv(num_columns, BLOCK_C))", "num_columns // BLOCK_C)"),
    "parts overlap": ("range(part * blocks_per_part, last)", "range(0, last)"),
    "columns past the vocabulary counted": ("(column_C < num_columns)[None, :]", "(column_C >= 0)[None, :]"),
    "forward without temperature": ("scaled(logits_NC, inverse_temperature", "scaled(logits_NC, 1.0"),
    "sum not rescaled": ("sum_N * decay_N", "sum_N"),
    "moment not shifted": ("moment_N + (maximum_N - after_N) * sum_N", "moment_N"),
    "wrong target": ("targets_N - vocab_start", "targets_N - vocab_start - 1"),
    "backward without temperature": ("scale = inverse_temperature", "scale = 1.0"),
    "backward without the soft cap's slope": ("slope_NC = scale * (1 - tanh_NC * tanh_NC)", "slope_NC = scale"),
    "columns of a later chunk": ("first_column + part * BLOCK_C", "part * BLOCK_C"),
    "entropy gradient not centred": ("logprob_NC + entropy_N[:, None]", "logprob_NC"),
    "head gradient of the last rows only": (
        "if weight_wanted and grad_weight_CD is None", "if weight_wanted"
    ),
    "log-sum of another row": ("log_sum_ptr + row_N", "log_sum_ptr + row_N // 2"),
}  # fmt: skip


def mutation_inputs(device):
    hidden_TD, weight_VD, targets_T = make(100, 24, 171, torch.float32, device)
    return hidden_TD, weight_VD, targets_T % 170


MUTATION_OPTIONS = {"with_entropy": True, "temperature": 0.6, "logit_softcap": 3.0, "vocab_size": 170}


@pytest.mark.parametrize(("old", "new"), MUTANTS.values(), ids=MUTANTS)
def test_a_wrong_kernel_leaves_the_bounds(device, old, new):
    mutant = mutated(ours, old, new)
    use_small_tiles(lambda module, name, value: setattr(module, name, value), mutant)
    inputs = mutation_inputs(device)
    try:
        share = compare(inputs, compute=mutant.fused_linear_logprob_triton, **MUTATION_OPTIONS)
    except AssertionError:  # not finite
        return
    assert share > 10


def test_the_mutants_original_passes(small_tiles, device):
    assert compare(mutation_inputs(device), **MUTATION_OPTIONS) <= 1


class LiveBytes(TorchDispatchMode):
    """Bytes of storages that operations inside the block made and that still live; `peak` is their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # the interpreter wraps the storages of arguments in tensors of its own
        before = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        before |= {x.data_ptr() for x in args if isinstance(x, torch.UntypedStorage)}
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in before | self.known:
                    self.known.add(storage.data_ptr())
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage.data_ptr(), storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _freed(self, address, size):
        self.known.discard(address)
        self.now -= size


def peak_bytes(compute, inputs) -> int:
    """Peak of a forward and backward pass beside the inputs and the two gradients."""
    hidden_TD, weight_VD, targets_T = inputs
    with LiveBytes() as live:
        options = {"vocab_size": len(weight_VD), "with_entropy": True}
        out = compute(hidden_TD, weight_VD, targets_T, **options)
        gc.collect()  # the interpreter keeps a launch's arguments in a cycle
        torch.autograd.grad([x.sum() for x in out], (hidden_TD, weight_VD))
    return live.peak - weight_VD.numel() * weight_VD.element_size()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["triton", "chunked"])
def test_peak_memory_does_not_depend_on_the_vocabulary(small_tiles, device, monkeypatch, name, dtype):
    """Beyond the smallest vocabulary that fills a chunk, twice as many rows add only their gradient."""
    monkeypatch.setattr(chunked, "CPU_TILE", (48, 80))
    compute = {"triton": ours.fused_linear_logprob_triton, "chunked": functools.partial(fused_linear_logprob_chunked,
        weights_T=None, active_rows=None, tensor_parallel_group=None, vocab_start=0, temperature=1.0,
        logit_softcap=None)}[name]  # fmt: skip
    peaks = [peak_bytes(compute, make(60, 8, vocab, dtype, device)) for vocab in (160, 320)]
    assert peaks[0] == peaks[1] > 0


@pytest.mark.parametrize("num_rows", [40, 100])
def test_the_accounting_bounds_the_measured_peak(small_tiles, device, num_rows):
    """fp32, whose operands the CPU does not widen, so that it allocates what a GPU would."""
    hidden, vocab = 16, 320
    stated = ours.workspace_bytes(num_rows, vocab, hidden, torch.float32)
    measured = peak_bytes(ours.fused_linear_logprob_triton, make(num_rows, hidden, vocab, torch.float32, device))
    assert measured <= max(stated.values()) <= 1.5 * measured


def test_the_accounting_at_the_shipped_sizes():
    sizes = [ours.workspace_bytes(16384, vocab, 4096, torch.bfloat16) for vocab in (65536, 131072, 262144)]
    assert sizes[0] == sizes[1] == sizes[2]
    assert sizes[0]["forward"] < 2**24
    # 256 MiB of dlogits, 2 x 256 MiB of hidden gradient and product in fp32, 128 MiB of head gradient
    assert abs(sizes[0]["backward"] - 896 * 2**20) < 2**20
    assert ours.workspace_bytes(10**6, 152064, 4096, torch.bfloat16)["forward"] < 10**6 * 4096


ONE_PROGRAM = """
import torch
from osim_kernels.fused_linear_logprob.triton import fused_linear_logprob_triton
from osim_kernels.proof.hopper import DEVICE, recording
weight_VD = torch.empty(4096, 256, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
with recording() as launches:
    for rows in (1, 16, 300, 4096, 20000):
        hidden_TD = torch.empty(rows, 256, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
        targets_T = torch.empty(rows, dtype=torch.int64, device=DEVICE)
        fused_linear_logprob_triton(hidden_TD, weight_VD, targets_T, vocab_size=4096)[0].sum().backward()
print(len(launches), len({launch.cubin for launch in launches}))
"""


def test_another_number_of_rows_compiles_nothing_new():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", ONE_PROGRAM], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.split() == ["11", "2"]  # 5 + 5, and the 20,000 rows take two chunks
