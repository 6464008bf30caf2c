"""metrics.jsonl: a run killed anywhere and resumed logs what an uninterrupted run logs."""

import errno
import json
import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osim_core.observe.metrics import MetricsLog, deterministic_lines, read_metrics
from osim_core.observe.run_dir import RunDirectory


def values_of(step: int) -> dict[str, float]:
    """What step `step` measures: any bits, the same in every run of it."""
    generator = torch.Generator().manual_seed(step)
    loss, norm = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    return {"train/loss": loss, "train/grad_norm": norm}


def train(run: RunDirectory, first: int, last: int, resume_step: int | None, pace: float) -> None:
    """Log steps first..last; validation at even steps, a line of its own."""
    with MetricsLog(run, resume_step) as log:
        for step in range(first, last + 1):
            log.log(step, {**values_of(step), "perf/tokens_per_second": pace * step})
            if step % 2 == 0:
                log.log(step, {"val/loss": values_of(step)["train/loss"] / 3})


@settings(max_examples=20, deadline=None)
@given(killed_after=st.integers(1, 9), torn=st.integers(0, 80), data=st.data())
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path_factory, killed_after, torn, data):
    root = tmp_path_factory.mktemp("runs")
    whole, broken = root / "whole", root / "broken"
    whole.mkdir(), broken.mkdir()
    train(RunDirectory(whole), 1, 10, None, pace=1.0)
    train(RunDirectory(broken), 1, killed_after, None, pace=2.0)
    with (broken / "metrics.jsonl").open("ab") as file:  # the kill fell into a write
        file.write(b'{"step": 99, "train/loss": 1.5, "train/grad_norm": 0.123456789012345678}'[:torn])
    checkpoint = data.draw(st.integers(0, killed_after))
    train(RunDirectory(broken), checkpoint + 1, 10, checkpoint or None, pace=3.0)
    assert deterministic_lines(broken / "metrics.jsonl") == deterministic_lines(whole / "metrics.jsonl")
    assert (broken / "metrics.jsonl").read_bytes() != (whole / "metrics.jsonl").read_bytes()  # the timings


def test_values_survive_to_the_last_bit_and_non_finite_ones_are_kept(tmp_path):
    values = {
        "a": 0.1 + 0.2,
        "b": math.nan,
        "c": math.inf,
        "d": -math.inf,
        "e": 7,
        "f": 5e-324,
        "note": "warm",
    }
    with MetricsLog(RunDirectory(tmp_path)) as log:
        log.log(3, values)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {  # NaN would not be JSON
        "step": 3, "a": 0.1 + 0.2, "b": "nan", "c": "inf", "d": "-inf", "e": 7, "f": 5e-324, "note": "warm"
    }  # fmt: skip
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(row.pop("b"))
    assert row == {"step": 3, **{name: value for name, value in values.items() if name != "b"}}


def test_each_line_is_on_disk_when_log_returns(tmp_path):
    log = MetricsLog(RunDirectory(tmp_path))
    for step in range(3):
        log.log(step, {"train/loss": 1.0})
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == step + 1
    log.close()


def test_a_start_from_scratch_cuts_an_earlier_attempt(tmp_path):
    train(RunDirectory(tmp_path), 0, 4, None, 1.0)
    train(RunDirectory(tmp_path), 0, 1, None, 1.0)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 0, 1]


@pytest.mark.parametrize("damage", [b"{broken\n", b'["step", 2]\n', b'{"train/loss": 1}\n', b"\xff\xfe\n"])
def test_damage_in_the_middle_names_file_and_line_and_is_not_repaired_silently(tmp_path, damage):
    train(RunDirectory(tmp_path), 1, 3, None, 1.0)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], damage, *lines[1:]]))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: damaged line"):
        MetricsLog(RunDirectory(tmp_path), resume_step=3)
    assert path.read_bytes() == before


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    def refuse(descriptor: int, line: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with MetricsLog(RunDirectory(tmp_path)) as log:
        monkeypatch.setattr("osim_core.observe.metrics.os.write", refuse)
        with pytest.raises(ValueError, match=r"cannot write step 4 \(No space left on device\)"):
            log.log(4, {"train/loss": 1.0})
        monkeypatch.setattr("osim_core.observe.metrics.os.write", lambda descriptor, line: len(line) - 3)
        with pytest.raises(ValueError, match="disk is full at step 5"):
            log.log(5, {"train/loss": 1.0})


def test_tensorboard_gets_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(RunDirectory(tmp_path), 1, 5, None, 1.0)
    train(RunDirectory(tmp_path), 4, 6, 3, 1.0)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    scalars = board.Scalars("train/loss")
    assert [scalar.step for scalar in scalars] == [1, 2, 3, 4, 5, 6]  # steps after the checkpoint once only
    assert [scalar.value for scalar in scalars] == pytest.approx(
        [values_of(step)["train/loss"] for step in range(1, 7)], rel=1e-6
    )
