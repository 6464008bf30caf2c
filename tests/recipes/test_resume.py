"""A run that is killed and resumed is the run that was never killed.

Real processes, `kill -9`, two tensor-parallel ranks. metrics.jsonl must agree bit for bit (timings aside) in the same
layout, and to fp32 tolerance in another one.
"""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from osim_core.observe.metrics import deterministic_lines

ROOT = Path(__file__).parents[2]
STEPS, SAVE_EVERY = 12, 4


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a small file of conversations; the cache of tokenizer and shards is shared by all runs here."""
    folder = tmp_path_factory.mktemp("resume")
    words = ["the", "a", "cat", "dog", "runs", "sleeps", "eats", "on", "under", "tree", "house", "why", "yes", "no"]
    draw = random.Random(3)
    with open(folder / "talks.jsonl", "w") as file:
        for number in range(150):
            turns = [
                {"role": "user" if turn % 2 else "assistant", "content": " ".join(draw.choices(words, k=9))}
                for turn in range(draw.randint(2, 9))
            ]
            file.write(json.dumps({"messages": turns, "data_source": "talks", "group": str(number)}) + "\n")
    return folder


def start(place: Path, name: str, *options: str) -> subprocess.Popen:
    command = [
        *(sys.executable, str(ROOT / "recipes" / "midtrain.py"), "tiny-cpu"),
        *("--runs", str(place / name), "--data.paths", str(place / "talks.jsonl"), "--data.roles", "talks", "keep"),
        *("--data.cache", str(place / "data"), "--data.tokenizer-vocab-size", "300", "--data.sequence-length", "128"),
        *("--model.vocab-size", "300", "--model.hidden-size", "32", "--model.ffn-hidden-size", "64"),
        *("--model.num-layers", "2", "--model.head-dim", "8", "--train.steps", str(STEPS)),
        *("--train.global-batch-rows", "4", "--train.evaluate-every", "4", "--train.evaluate-rows", "4"),
        *("--train.final-evaluate-rows", "4", "--train.device-peak-tflops", "1"),
        *("--checkpoint.save-every", str(SAVE_EVERY), *options),
    ]
    with open(place / f"{name}.log", "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=place)


def finish(place: Path, name: str, *options: str) -> Path:
    """Run to the end; returns the run directory."""
    code = start(place, name, *options).wait(timeout=240)
    assert code == 0, (place / f"{name}.log").read_text()[-3000:]
    return (place / name / "midtrain" / "latest").resolve()


def kill_when(process: subprocess.Popen, condition) -> None:
    """SIGKILL the launcher and every rank, savers included, the moment `condition()` holds."""
    launcher = psutil.Process(process.pid)
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run did not get far enough"
        time.sleep(0.002)
    for victim in [launcher, *launcher.children(recursive=True)]:
        victim.send_signal(signal.SIGKILL)
    process.wait()


def logged_steps(place: Path, name: str) -> int:
    path = place / name / "midtrain" / "latest" / "metrics.jsonl"
    return path.read_text().count('"train/loss"') if path.exists() else 0


@pytest.fixture(scope="module")
def uninterrupted(place) -> list[str]:
    run = finish(place, "uninterrupted")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["outcome"]["held_out_loss_fell"]
    return deterministic_lines(run / "metrics.jsonl")


def test_killed_while_training_continues_bit_for_bit(place, uninterrupted):
    process = start(place, "killed")
    victim = random.Random().randint(SAVE_EVERY + 1, STEPS - 2)  # the property holds at any moment: try a new one
    kill_when(process, lambda: logged_steps(place, "killed") >= victim)
    checkpoints = sorted((place / "killed/midtrain/latest/checkpoints").glob("step-*"))
    lost = logged_steps(place, "killed") - (int(checkpoints[-1].name[5:]) if checkpoints else 0)
    assert lost <= 2 * SAVE_EVERY  # the save of the last interval may not have been published yet
    run = finish(place, "killed", "--resume", "latest")
    assert deterministic_lines(run / "metrics.jsonl") == uninterrupted, f"killed at step {victim}"


def test_killed_while_saving_leaves_no_half_checkpoint_and_continues(place, uninterrupted):
    process = start(place, "saving")
    folder = place / "saving/midtrain/latest/checkpoints"
    kill_when(process, lambda: any(folder.glob(".step-00000008.partial/*")))
    assert (folder / "step-00000004").is_dir() and not (folder / "step-00000008").exists()
    run = finish(place, "saving", "--resume", "latest")
    assert deterministic_lines(run / "metrics.jsonl") == uninterrupted
    assert not list(folder.glob(".*"))


def test_resuming_in_another_layout_continues_within_tolerance(place, uninterrupted):
    process = start(place, "resharded")
    kill_when(process, lambda: logged_steps(place, "resharded") >= 9)
    run = finish(
        place, "resharded", "--resume", "latest", "--layout.tensor", "1", "--layout.sequence-parallel", "False"
    )
    mine = [json.loads(line) for line in deterministic_lines(run / "metrics.jsonl")]
    truth = [json.loads(line) for line in uninterrupted]
    assert len(mine) == len(truth)
    for row, expected in zip(mine, truth, strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)
