"""Kernel benchmark: tiny problems pass the correctness gate in the interpreter, a wrong contender gets no speed, and
tile counts are FlexAttention's and the plan's own."""

import contextlib
import importlib
import itertools

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from benchmarks import kernels
from benchmarks.kernels import measure, offline_report, tile_counts

CPU = torch.device("cpu")


class FakeClock:
    """Runs each call once and says that it took 1, 2 and 3 ms."""

    device = "a card that is not there"

    def __init__(self):
        self.calls = 0

    def __call__(self, function):
        self.calls += 1
        function()
        return [1e-3, 2e-3, 3e-3]


def tiny(op):
    module = importlib.import_module(f"benchmarks.kernels.{op}")
    sizes = {
        "packed_attention": ([0, 3, 20], 2, 1, 32, CPU, torch.float32, "tiny"),
        "fused_linear_logprob": (3, 16, 40, CPU, torch.float32),
        "fused_linear_kl": (3, 16, 32, 40, CPU, torch.float32),
        "policy_loss": (37, CPU),
        "judge_score": (5, 2, 16, 40, CPU, torch.float32),
    }
    return module.problem(*sizes[op])


def squares(**changes):
    contenders = {"osim": lambda x: x * x, "peer": lambda x: x.pow(2)} | changes
    return measure.Problem(
        op="square", case={"size": 8}, inputs={"x": torch.randn(8).bfloat16()}, learned=("x",), truth=lambda x: x**2,
        contenders=contenders, tolerance=1e-2, flops=(2e9, 4e9), moved_bytes=(1e9, 2e9),
        candidates={"other": contextlib.nullcontext},
    )  # fmt: skip


PEAKS = measure.Peaks(flops=10e12, bandwidth=1e12)


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("op", kernels.OPS)
def test_our_kernel_passes_the_gate_of_its_own_benchmark(op):
    problem = tiny(op)
    rows = measure.rows(problem, FakeClock(), PEAKS)
    directions = ["forward", "forward+backward"] if problem.learned else ["forward"]
    assert [case["direction"] for case, _ in rows if case["implementation"] == "osim"] == directions
    assert all(result["error"] <= 1e-5 and result["p50_s"] == 2e-3 for _, result in rows)


@pytest.mark.parametrize("op", kernels.OPS)
def test_every_candidate_of_ours_is_a_configuration_that_runs_and_is_taken_back(op):
    module = importlib.import_module(f"benchmarks.kernels.{op}")
    sizes = {
        "packed_attention": ([0, 20, 70], 1, 1, 64, CPU, torch.bfloat16, "tiny"),
        "fused_linear_logprob": (70, 64, 130, CPU, torch.bfloat16),
        "fused_linear_kl": (70, 64, 64, 130, CPU, torch.bfloat16),
        "policy_loss": (1500, CPU),
        "judge_score": (20, 2, 64, 130, CPU, torch.bfloat16),
    }
    problem = module.problem(*sizes[op])
    shipped = problem.contenders["osim"](**problem.inputs)
    assert len(problem.candidates) >= 3
    for configured in problem.candidates.values():
        with configured():
            other = problem.contenders["osim"](**problem.inputs)
        torch.testing.assert_close(other, shipped, rtol=2e-2, atol=2e-2)
    assert torch.equal(problem.contenders["osim"](**problem.inputs), shipped)


def test_rows_of_right_contenders():
    clock = FakeClock()
    rows = measure.rows(squares(), clock, PEAKS, tune=True)
    about = [(case["kind"], case["implementation"], case["direction"]) for case, _ in rows]
    directions = ("forward", "forward+backward")
    assert about == [
        *(("speed", "osim", direction) for direction in directions),
        *(("speed", "peer", direction) for direction in directions),
        *(("tune", "osim other", direction) for direction in directions),
    ]
    forward, both = rows[0][1], rows[1][1]
    assert forward["rung"] == "measured on a card that is not there" and clock.calls == 6
    assert forward["tflops"] == pytest.approx(1.0) and both["tflops"] == pytest.approx(2.0)
    assert forward["tb_per_s"] == pytest.approx(0.5) and forward["share_of_peak_bandwidth"] == pytest.approx(0.5)
    assert both["share_of_peak_flops"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x * x * 1.1,
        lambda x: x * x.detach(),  # right value, half the gradient
        lambda x: x * x + float("nan"),
        lambda x: x.detach() * x.detach() + 0 * x * float("inf"),
    ],
)
def test_a_wrong_contender_gets_no_speed(wrong):
    clock = FakeClock()
    rows = measure.rows(squares(peer=wrong), clock, PEAKS)
    (case, result) = rows[-1]
    assert case["implementation"] == "peer" and "direction" not in case and set(result) == {"rung", "wrong"}
    assert len(rows) == 3 and clock.calls == 2
    assert measure.table(rows).row_count == 3


def test_measured_peaks_come_from_a_product_and_a_copy():
    peaks = measure.measured_peaks(FakeClock(), size=16, device="cpu")
    assert peaks.flops == pytest.approx(2 * 16**3 / 2e-3) and peaks.bandwidth == pytest.approx(2 * 8 * 256 / 2e-3)


@pytest.mark.parametrize("op", kernels.OPS)
def test_work_is_positive_and_names_its_shape(op):
    for work in importlib.import_module(f"benchmarks.kernels.{op}").work().values():
        assert work.shape and min(work.flops, work.moved_bytes, work.tile_flops, work.tile_bytes) > 0


# tile counts


def test_tile_counts_of_a_row_by_hand():
    counts = tile_counts.count([100, 30], 64, 64, capacity=192)
    assert counts == {"ours": 4, "minimum": 3 + 1, "allowed": 6, "flex": 5, "dense": 6}


@pytest.mark.parametrize("tile", [(64, 64), (64, 32), (32, 64)])
def test_the_count_of_flex_attention_is_its_block_masks(tile):
    lengths = np.random.default_rng(0).integers(1, 90, 24).tolist()
    borders = [0, *itertools.accumulate(lengths)]
    document_T = torch.bucketize(torch.arange(borders[-1]), torch.tensor(borders[1:]), right=True)

    def sees(batch, head, query, key):
        return (query >= key) & (document_T[query] == document_T[key])

    mask = create_block_mask(sees, None, None, borders[-1], borders[-1], device="cpu", BLOCK_SIZE=tile)
    blocks = mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum()
    assert tile_counts.count(lengths, *tile, capacity=borders[-1])["flex"] == int(blocks)


def test_the_plan_stays_within_eight_per_cent_of_what_is_needed():
    rows = tile_counts.rows()
    assert {case["lengths"] for case, _ in rows} == set(tile_counts.DISTRIBUTIONS) and len(rows) == 6
    for _, result in rows:
        assert result["minimum"] <= result["allowed"] <= result["flex"] + result["allowed"] <= result["dense"]
        assert result["ours_over_allowed"] <= 1.08
    assert tile_counts.table(rows).row_count == 6


def test_lengths_are_refused_by_name():
    with pytest.raises(ValueError, match="no distribution of lengths 'zipf'"):
        tile_counts.lengths_of("zipf")


# the command


def test_bad_arguments_are_one_clear_error():
    with pytest.raises(ValueError, match="no kernel benchmark of nonsense"):
        kernels.main(["nonsense"])
    with pytest.raises(ValueError, match="needs a GPU"):
        kernels.main(["--offline", "--tune"])


def test_offline_tables_hold_every_row():
    kernel = dict.fromkeys(("registers", "warps", "shared_bytes", "blocks_per_sm", *offline_report.COUNTS), 1)
    estimate = dict.fromkeys(("flops", "hbm_bytes", "tile_flops", "tile_bytes", "roofline_s"), 1.0)
    rows = [
        ({"kind": "kernel", "op": "o", "owner": "osim", "variant": "v", "kernel": "k"}, kernel | {"limiter": "warps"}),
        ({"kind": "roofline", "op": "o", "direction": "forward", "shape": "s"}, estimate | {"bound": "memory"}),
    ]
    assert [table.row_count for table in offline_report.tables(rows)] == [1, 1]
