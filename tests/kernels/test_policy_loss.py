"""Policy loss: published formulas written out, gradients at the bounds, masked garbage; Triton and the reference alike.

Shape suffixes: T tokens, S sequences.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osim_kernels.policy_loss import CISPO, DAPO, GRPO, GSPO, PolicyLossConfig, policy_loss, triton
from osim_kernels.policy_loss.metrics import SUMS
from osim_kernels.policy_loss.triton import policy_loss_triton
from osim_kernels.proof.sanitizer import checked
from tests.support.mutate import mutated

pytestmark = pytest.mark.usefixtures("poisoned_empty")

CONFIGS = {
    "grpo": GRPO,
    "dapo": DAPO,
    "dapo, dual clip, corrected": replace(DAPO, dual_clip=1.6, sampler_cap=1.05),
    "gspo": replace(GSPO, clip_low=0.05, clip_high=0.06),
    "gspo, corrected": replace(GSPO, clip_low=0.05, clip_high=0.06, sampler_cap=1.05),
    "cispo": replace(CISPO, clip_high=0.2),
    "cispo, corrected, both bounds": replace(CISPO, clip_low=0.1, clip_high=0.2, sampler_cap=0.98),
}


def make(num_tokens, dtype=torch.float64, borders=None, spread=0.3):
    """Inputs with NaN in every masked row; about one token in four is masked."""
    old_T = -torch.rand(num_tokens, dtype=dtype) * 4
    logprob_T = old_T + spread * torch.randn(num_tokens, dtype=dtype)
    sampler_T = old_T + 0.1 * torch.randn(num_tokens, dtype=dtype)
    advantage_T = torch.randn(num_tokens, dtype=dtype)
    advantage_T[::7] = 0.0
    weights_T = (torch.arange(num_tokens) % 4 != 3).to(dtype) * 0.5
    for x_T in (logprob_T, old_T, sampler_T, advantage_T):
        x_T[weights_T == 0] = math.nan
    borders = [0, num_tokens // 3, num_tokens // 3, num_tokens, num_tokens] if borders is None else borders
    return {
        "logprob_T": logprob_T.requires_grad_(),
        "old_logprob_T": old_T,
        "advantage_T": advantage_T,
        "weights_T": weights_T,
        "sampler_logprob_T": sampler_T,
        "cu_seqlens": torch.tensor(borders, dtype=torch.int32),
    }


def by_hand(inputs, config):
    """(loss, d loss / d logprob, sums) token by token in Python, straight from the papers' equations."""
    logprob, old, sampler, advantage, weights = (
        inputs[name].tolist()
        for name in ("logprob_T", "old_logprob_T", "sampler_logprob_T", "advantage_T", "weights_T")
    )
    borders = inputs["cu_seqlens"].tolist()
    active = [t for t, weight in enumerate(weights) if weight != 0]
    ratio = {t: math.exp(logprob[t] - old[t]) for t in active}
    if config.ratio == "sequence":
        for start, stop in itertools.pairwise(borders):
            mine = [t for t in active if start <= t < stop]
            for t in mine:
                ratio[t] = math.exp(sum(logprob[u] - old[u] for u in mine) / len(mine))
    low, high = 1 - config.clip_low, 1 + config.clip_high
    loss, slope, sums = [0.0] * len(weights), [0.0] * len(weights), dict.fromkeys(SUMS, 0.0)
    for t in active:
        r, a = ratio[t], advantage[t]
        correction = math.exp(old[t] - sampler[t])
        w = 1.0 if config.sampler_cap is None else min(correction, config.sampler_cap)
        clipped = min(max(r, low), high)
        if config.surrogate == "cispo":
            loss[t] = -w * a * clipped * logprob[t]
            slope[t] = -w * a * clipped
            sums["clip_low"] += a != 0 and r < low
            sums["clip_high"] += a != 0 and r > high
        else:
            value = min(r * a, clipped * a)
            dual = a < 0 and config.dual_clip is not None and r > config.dual_clip
            if dual:
                value = max(value, config.dual_clip * a)
            loss[t] = -w * value
            slope[t] = -w * a * r if value == r * a else 0.0
            sums["clip_low"] += a < 0 and r < low
            sums["clip_high"] += a > 0 and r > high
            sums["dual_clip"] += dual
        log_ratio = logprob[t] - old[t]
        sums["tokens"] += 1
        sums["ratio"] += r
        sums["k1"] += -log_ratio
        sums["k2"] += log_ratio**2 / 2
        sums["k3"] += math.exp(log_ratio) - 1 - log_ratio
        sums["mismatch"] += abs(old[t] - sampler[t])
        sums["mismatch_exp"] += math.exp(abs(old[t] - sampler[t]))
        sums["sampler_weight"] += w
        sums["truncated"] += config.sampler_cap is not None and correction > config.sampler_cap
    worst = max((abs(old[t] - sampler[t]) for t in active), default=0.0)
    return loss, slope, [float(sums[name]) for name in SUMS], worst


def assert_equals_hand(compute, inputs, config, tolerance):
    loss_T, metrics = compute(inputs, config)
    ramp_T = torch.linspace(-1, 2, len(loss_T), dtype=loss_T.dtype, device=loss_T.device)
    (grad_T,) = torch.autograd.grad((loss_T * ramp_T).sum(), inputs["logprob_T"])
    loss, slope, sums, worst = by_hand(inputs, config)
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(loss_T.detach().cpu().double(), torch.tensor(loss, dtype=torch.float64), **close)
    torch.testing.assert_close(
        grad_T.cpu().double(), torch.tensor(slope, dtype=torch.float64) * ramp_T.cpu().double(), **close
    )
    torch.testing.assert_close(metrics.sums.cpu(), torch.tensor(sums, dtype=torch.float64), **close)
    assert metrics.mismatch_max.item() == pytest.approx(worst, abs=tolerance)


def public(inputs, config):
    rest = {name: inputs[name] for name in ("weights_T", "sampler_logprob_T", "cu_seqlens")}
    return policy_loss(inputs["logprob_T"], inputs["old_logprob_T"], inputs["advantage_T"], config=config, **rest)


def interpreted(inputs, config, module=None):
    compute = policy_loss_triton if module is None else module.policy_loss_triton
    return compute(
        inputs["logprob_T"],
        inputs["old_logprob_T"],
        inputs["sampler_logprob_T"],
        inputs["advantage_T"],
        inputs["weights_T"],
        inputs["cu_seqlens"][None],
        None,
        config,
    )


def single(inputs, device):
    """The same numbers in fp32 on the device."""
    cast = {
        name: x.detach().to(device, torch.float32) if x.is_floating_point() else x.to(device)
        for name, x in inputs.items()
    }
    cast["logprob_T"].requires_grad_()
    return cast


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_tokens", [1, 2, 63, 200])
def test_reference_equals_the_published_formulas(name, num_tokens):
    assert_equals_hand(public, make(num_tokens), CONFIGS[name], 1e-12)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_tokens", [1, 129, 300])
def test_triton_equals_the_published_formulas(name, num_tokens, device, monkeypatch):
    monkeypatch.setattr(triton, "BLOCK", 128)
    assert_equals_hand(interpreted, single(make(num_tokens), device), CONFIGS[name], 2e-5)


def test_bool_weights_equal_float_ones(device):
    inputs = single(make(70), device)
    expected, metrics = interpreted(inputs, CONFIGS["gspo, corrected"])
    got, mine = interpreted({**inputs, "weights_T": inputs["weights_T"] != 0}, CONFIGS["gspo, corrected"])
    assert torch.equal(got, expected) and torch.equal(mine.sums, metrics.sums)


def test_the_shipped_block_size_too(device):
    assert_equals_hand(interpreted, single(make(2500), device), CONFIGS["gspo, corrected"], 1e-4)


@pytest.mark.parametrize("config", [c for c in CONFIGS.values() if c.ratio == "token" and c.surrogate == "clip"])
def test_gradcheck(config):
    inputs = make(40)
    inputs = {name: torch.nan_to_num(x.detach()) for name, x in inputs.items()}
    inputs["weights_T"] = torch.ones(40)

    def loss(logprob_T):
        return public({**inputs, "logprob_T": logprob_T}, config)[0]

    assert torch.autograd.gradcheck(loss, inputs["logprob_T"].clone().requires_grad_())


def one_token(log_ratio, advantage, config, sampler=None, compute=public, dtype=torch.float64):
    inputs = {
        "logprob_T": torch.tensor([log_ratio - 1.0], dtype=dtype, requires_grad=True),
        "old_logprob_T": torch.tensor([-1.0], dtype=dtype),
        "advantage_T": torch.tensor([advantage], dtype=dtype),
        "weights_T": torch.ones(1),
        "sampler_logprob_T": torch.tensor([-1.0 if sampler is None else sampler], dtype=dtype),
        "cu_seqlens": torch.tensor([0, 1]),
    }
    loss_T, metrics = compute(inputs, config)
    return loss_T.item(), torch.autograd.grad(loss_T.sum(), inputs["logprob_T"])[0].item(), metrics


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),  # on policy: the policy gradient itself
        (1.5, 2.0, -2.56, 0.0),  # a good token already raised beyond 1.28: held
        (0.5, 2.0, -1.0, -1.0),  # a good token that fell: free
        (0.5, -2.0, 1.6, 0.0),  # a bad token already below 0.8: held
        (1.5, -2.0, 3.0, 3.0),  # a bad token that rose: free
        (4.0, -2.0, 6.0, 0.0),  # ... up to the dual clip
    ],
)
def test_clip_cases_of_ppo_with_clip_higher_and_dual_clip(ratio, advantage, loss, slope):
    got = one_token(math.log(ratio), advantage, replace(DAPO, dual_clip=3.0))
    assert got[:2] == pytest.approx((loss, slope), abs=1e-12)


@pytest.mark.parametrize("compute", [public, interpreted], ids=["reference", "triton"])
def test_gradient_flows_at_the_bound_itself_and_not_past_it(compute):
    config = PolicyLossConfig(clip_low=0.5, clip_high=1.0)  # bounds 0.5 and 2 are exact in binary, and exp(0) is
    at = PolicyLossConfig(clip_low=1.0, clip_high=1e-7)  # 1 + 1e-7 rounds to 1 + 2^-23 in fp32
    assert one_token(0.0, 1.0, at, compute=compute, dtype=torch.float32)[1] == -1.0
    for advantage, log_bound in ((1.0, math.log(2.0)), (-1.0, math.log(0.5))):
        outward = math.copysign(1e-3, log_bound)
        inside = one_token(log_bound - outward, advantage, config, compute=compute, dtype=torch.float32)
        past = one_token(log_bound + outward, advantage, config, compute=compute, dtype=torch.float32)
        assert inside[1] != 0 and past[1] == 0
        assert inside[0] == pytest.approx(past[0], rel=2e-3)  # the loss itself is continuous


@pytest.mark.parametrize("compute", [public, interpreted], ids=["reference", "triton"])
@pytest.mark.parametrize("config", [DAPO, CISPO, GSPO, replace(DAPO, sampler_cap=2.0)])
@pytest.mark.parametrize("log_ratio", [-1e4, -90.0, 90.0, 1e4])
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_no_log_ratio_overflows(compute, config, log_ratio, advantage):
    loss, slope, metrics = one_token(log_ratio, advantage, config, -1.0 - log_ratio, compute, torch.float32)
    assert math.isfinite(loss) and math.isfinite(slope) and metrics.sums.isfinite().all()


@pytest.mark.parametrize("compute", [public, interpreted], ids=["reference", "triton"])
def test_a_nan_in_an_active_row_reaches_the_loss(compute):
    assert math.isnan(one_token(math.nan, 1.0, DAPO, compute=compute, dtype=torch.float32)[0])


def test_gspo_on_equal_advantages_has_the_gradient_of_the_sequence_objective():
    """GSPO, equation 5: the mean over a sequence of l_t has the gradient of -s A, s the length-normalised ratio."""
    inputs = make(12, borders=[0, 5, 12])
    inputs = {name: torch.nan_to_num(x.detach()) for name, x in inputs.items()}
    inputs["weights_T"] = torch.ones(12)
    inputs["advantage_T"] = torch.tensor([0.7] * 5 + [-1.3] * 7, dtype=torch.float64)
    logprob_T = inputs["logprob_T"].clone().requires_grad_()
    loss_T, _ = public({**inputs, "logprob_T": logprob_T}, replace(GSPO, clip_low=0.9, clip_high=9.0))
    mine = torch.autograd.grad(loss_T[:5].mean() + loss_T[5:].mean(), logprob_T)[0]
    log_ratio_T = logprob_T - inputs["old_logprob_T"]
    truth = -0.7 * log_ratio_T[:5].mean().exp() + 1.3 * log_ratio_T[5:].mean().exp()
    torch.testing.assert_close(mine, torch.autograd.grad(truth, logprob_T)[0])


@pytest.mark.parametrize("compute", [public, interpreted], ids=["reference", "triton"])
def test_tokens_outside_every_sequence_count_as_masked(compute, device):
    inputs = make(30, borders=[3, 10, 20])
    short = {
        **inputs,
        "weights_T": torch.where(torch.arange(30).sub(3).clamp(min=0) % 17 < 17, inputs["weights_T"], 0.0),
    }
    short["weights_T"][:3] = 0
    short["weights_T"][20:] = 0
    config = CONFIGS["gspo"]
    for left, right in zip(
        compute(single(inputs, device), config), compute(single(short, device), config), strict=True
    ):
        if isinstance(left, torch.Tensor):
            assert torch.equal(left, right)
        else:
            assert torch.equal(left.sums, right.sums)


def test_chunks_of_a_sequence_share_its_ratio(device):
    """cu_seqlens [C, S+1]: a row that holds a sequence's front and back apart equals the row that holds it whole."""
    whole = single(make(24, borders=[0, 8, 24]), device)
    order = [*range(0, 4), *range(8, 14), *range(4, 8), *range(14, 24)]
    split = {name: x.detach()[order] if x.ndim == 1 and len(x) == 24 else x for name, x in whole.items()}
    split["logprob_T"].requires_grad_()
    split["cu_seqlens"] = torch.tensor([[0, 4, 10], [10, 14, 24]], device=device)
    config = CONFIGS["gspo"]
    expected, _ = public(whole, config)
    torch.testing.assert_close(public(split, config)[0], expected[order])
    got, _ = policy_loss_triton(
        split["logprob_T"], split["old_logprob_T"], None, split["advantage_T"], split["weights_T"],
        split["cu_seqlens"], None, config,
    )  # fmt: skip
    torch.testing.assert_close(got, expected[order], rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 90), max_size=8), name=st.sampled_from(sorted(CONFIGS)))
def test_triton_equals_reference_on_any_borders(cuts, name):
    inputs = single(make(90, borders=[0, *sorted(cuts), 90]), "cpu")
    expected, metrics = public(inputs, CONFIGS[name])
    (grad_T,) = torch.autograd.grad(expected.sum(), inputs["logprob_T"])
    got, mine = interpreted(inputs, CONFIGS[name])
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), inputs["logprob_T"])[0], grad_T, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(mine.sums, metrics.sums, rtol=2e-5, atol=1e-5)


def test_no_access_out_of_bounds_and_no_race(monkeypatch):
    monkeypatch.setattr(triton, "BLOCK", 64)
    inputs = single(make(150), "cpu")
    with checked(**inputs):
        loss_T, _ = interpreted(inputs, CONFIGS["gspo, corrected"])
    assert loss_T.isfinite().all()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("below_B = (advantage_B != 0) & (ratio_B < lower_B)", "below_B = (advantage_B != 0) & (ratio_B < 0.0)"),
        ("tl.where(advantage_B > 0, upper_up, upper_down)", "tl.where(advantage_B < 0, upper_up, upper_down)"),
        ("active_B = inside_B & (tl.load(weights", "active_B = inside_B | (tl.load(weights"),
        ("weight_B = tl.where(truncated_B, sampler_cap, weight_B)", "weight_B = weight_B"),
        ("slope_B = tl.where(held_B, 0.0, loss_B)", "slope_B = loss_B"),
        ("row_B = program * BLOCK", "row_B = 0 * BLOCK"),
    ],
)
def test_planted_faults_are_caught(old, new, monkeypatch):
    mutant = mutated(triton, old, new)
    monkeypatch.setattr(mutant, "BLOCK", 64)
    with pytest.raises(AssertionError):
        for name in ("dapo, dual clip, corrected", "gspo, corrected"):
            inputs = single(make(150), "cpu")
            assert_equals_hand(lambda x, c: interpreted(x, c, mutant), inputs, CONFIGS[name], 2e-5)


@pytest.mark.parametrize("compute", [public, interpreted], ids=["reference", "triton"])
def test_all_masked_or_no_tokens(compute, device):
    inputs = single(make(9), device)
    inputs["weights_T"].zero_()
    loss_T, metrics = compute(inputs, DAPO)
    (grad_T,) = torch.autograd.grad(loss_T.sum(), inputs["logprob_T"])
    assert (loss_T == 0).all() and (grad_T == 0).all() and (metrics.sums == 0).all()
    assert set(metrics.means().values()) == {0.0}
    nothing = {name: x[:0] if name != "cu_seqlens" else torch.zeros_like(x) for name, x in inputs.items()}
    loss_T, metrics = compute(nothing, GSPO)
    assert loss_T.numel() == 0 and (metrics.sums == 0).all()


def test_metrics_add_up_over_micro_batches():
    inputs = make(64)
    _, whole = public(inputs, DAPO)
    parts = []
    for rows in (slice(0, 20), slice(20, 64)):
        part = {name: x[rows] if name != "cu_seqlens" else x for name, x in inputs.items()}
        parts.append(public(part, DAPO)[1])
    together = parts[0] + parts[1]
    assert together.means() == pytest.approx(whole.means())
    assert whole.means()["k3"] >= 0 and whole.means()["mismatch_exp"] >= 1


def group_job(config):
    """Rank r's half of each sequence, front or back; the ratio has to come from both ranks."""
    import torch.distributed as dist

    torch.manual_seed(5)
    whole = make(24, borders=[0, 8, 24])
    rows = [[*range(0, 4), *range(8, 14)], [*range(4, 8), *range(14, 24)]][dist.get_rank()]
    mine = {name: x.detach()[rows] if len(x) == 24 else x for name, x in whole.items()}
    borders = torch.tensor([0, 4, len(rows)])
    loss_T, metrics = policy_loss(
        mine["logprob_T"], mine["old_logprob_T"], mine["advantage_T"], weights_T=mine["weights_T"], config=config,
        cu_seqlens=borders, context_parallel_group=dist.group.WORLD,
    )  # fmt: skip
    return rows, loss_T, metrics.all_reduce().sums


def test_ranks_that_share_sequences_share_their_ratios(workers):
    config = CONFIGS["gspo"]
    parts = workers(2).run(group_job, config=config)
    torch.manual_seed(5)
    whole = make(24, borders=[0, 8, 24])
    whole["sampler_logprob_T"] = whole["old_logprob_T"]
    expected, metrics = public(whole, config)
    for rows, loss_T, sums in parts:
        torch.testing.assert_close(loss_T, expected.detach()[rows])
        torch.testing.assert_close(sums[:8], metrics.sums[:8])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"surrogate": "ppo"}, "surrogate must be clip or cispo"),
        ({"ratio": "turn"}, "ratio must be token or sequence"),
        ({"clip_low": 0.0}, "clip_low must be above 0"),
        ({"clip_low": 1.5}, "clip_low must be above 0"),
        ({"clip_high": math.inf}, "clip_high must be above 0 and finite"),
        ({"dual_clip": 1.0}, "dual_clip must be above 1"),
        ({"surrogate": "cispo", "dual_clip": 3.0}, "dual_clip belongs to the clip surrogate"),
        ({"sampler_cap": 0.0}, "sampler_cap must be above 0"),
    ],
)
def test_a_bad_setting_is_an_error(settings, message):
    with pytest.raises(ValueError, match=message):
        PolicyLossConfig(**settings)


def test_bad_inputs_are_errors():
    inputs = make(8)
    rest = {"weights_T": inputs["weights_T"], "config": DAPO}
    first = inputs["logprob_T"], inputs["old_logprob_T"], inputs["advantage_T"]
    with pytest.raises(ValueError, match="old_logprob_T is torch"):
        policy_loss(first[0], first[1].float(), first[2], **rest)
    with pytest.raises(ValueError, match=r"weights_T is \[7\]"):
        policy_loss(*first, weights_T=inputs["weights_T"][:7], config=DAPO)
    with pytest.raises(ValueError, match="sampler_cap needs sampler_logprob_T"):
        policy_loss(*first, weights_T=inputs["weights_T"], config=replace(DAPO, sampler_cap=2.0))
    with pytest.raises(ValueError, match="needs cu_seqlens"):
        policy_loss(*first, weights_T=inputs["weights_T"], config=GSPO)
    with pytest.raises(ValueError, match=r"cu_seqlens must be integer \[S\+1\]"):
        policy_loss(*first, weights_T=inputs["weights_T"], config=GSPO, cu_seqlens=torch.zeros(3))
