"""The progress line shows the numbers it was given, on a terminal and in a log."""

import io

import pytest
from rich.console import Console

from osim_core.observe.progress import Progress, format_duration

METRICS = {
    "train/loss": 4.21749,
    "train/learning_rate": 1e-3,
    "perf/tokens_per_second": 81234.6,
    "perf/mfu": 0.4321,
    "train/grad_norm": 0.9,
}


def test_a_log_file_gets_one_plain_line_every_so_often():
    out = io.StringIO()
    with Progress(25, every=10, console=Console(file=out, soft_wrap=True)) as progress:
        for step in range(1, 26):
            progress.update(step, METRICS | ({"val/loss": 4.5} if step == 12 else {}))
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["10/25", "20/25", "25/25"]
    assert "loss 4.2175  lr 1.00e-03  81,235 tok/s  MFU 43.2%" in lines[0]
    assert "val" not in lines[0] and "val 4.5000" in lines[1] and "val 4.5000" in lines[2]  # the last reading stays
    assert "ETA" in lines[0] and "ETA" not in lines[2]
    assert "\x1b" not in out.getvalue()


def test_a_terminal_gets_one_live_line():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=200, highlight=False)
    with Progress(3, console=console) as progress:
        for step in range(1, 4):
            progress.update(step, METRICS)
        progress.note("checkpoint [step 3] saved")
    text = out.getvalue()
    assert "3/3" in text and "loss 4.2175" in text and "checkpoint [step 3] saved" in text


def test_eta_counts_from_the_resumed_step(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    out = io.StringIO()
    progress = Progress(1000, start=900, every=1, console=Console(file=out, soft_wrap=True))
    now[0] = 120.0
    progress.update(910, METRICS)  # 2 s a step, 90 to go
    assert "ETA 3:00" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0:00"),
        (59.6, "1:00"),
        (90, "1:30"),
        (5400, "1:30:00"),
        (200_000, "2d 7:33:20"),
        (86_400, "1d 0:00:00"),
    ],
)
def test_durations_read_as_a_clock(seconds, text):
    assert format_duration(seconds) == text
