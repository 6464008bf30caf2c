"""A stage does each part once, however often it is killed, and gives the same bytes on every executor."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from osim_core.corpus.durable import write_durably
from osim_core.corpus.executor import Local, Ray
from osim_core.corpus.stage import Job, Stage

JOBS = [Job(f"part-{n}", n) for n in range(6)]


def square(number, folder: Path, name: str) -> dict:
    with (folder / "log").open("a") as log:  # O_APPEND: whole lines, also from several processes
        log.write(f"{name}\n")
    write_durably(folder / f"{name}.bin", bytes([number] * number))
    return {"square": number**2}


def square_but_four(number, folder: Path, name: str) -> dict:
    if number == 4:
        raise ValueError("part 4 is broken")
    return square(number, folder, name)


def contents(stage: Stage) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in stage.folder.iterdir() if path.name != "log"}


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path / "work", "square", {"version": 1})


def test_results_come_in_the_order_of_the_jobs(stage):
    seen = []
    results = stage.run(square, JOBS, Local(1), lambda *step: seen.append(step))
    assert [result["square"] for result in results] == [0, 1, 4, 9, 16, 25]
    assert seen == [("square", done, 6) for done in range(7)]


def test_a_pool_writes_the_same_bytes(tmp_path, stage):
    other = Stage(tmp_path / "other", "square", {"version": 1})
    assert stage.run(square, JOBS, Local(1)) == other.run(square, JOBS, Local(3))
    assert contents(stage) == contents(other)


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # its workers cannot import the tests
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield Ray()
    ray.shutdown()


def test_ray_writes_the_same_bytes(tmp_path, stage, ray):
    other = Stage(tmp_path / "other", "square", {"version": 1})
    assert stage.run(square, JOBS, Local(1)) == other.run(square, JOBS, ray)
    assert contents(stage) == contents(other)


def test_a_failure_on_ray_is_the_parts_own(stage, ray):
    with pytest.raises(ValueError, match="part 4 is broken"):
        stage.run(square_but_four, JOBS, ray)
    assert stage.run(square, JOBS, Local(1))[4] == {"square": 16}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_failure_ends_the_stage_and_finished_parts_are_not_redone(stage, processes):
    with pytest.raises(ValueError, match="part 4 is broken"):
        stage.run(square_but_four, JOBS, Local(processes))
    assert stage.run(square, JOBS, Local(1))[4] == {"square": 16}
    log = (stage.folder / "log").read_text().split()
    assert sorted(log) == sorted(set(log)), "a part was done twice"


def test_a_killed_build_goes_on_where_it_was(tmp_path, stage):
    """Kill -9 while part 3 is being written: what is there is whole, and only the missing parts are done."""
    script = f"""
import os, signal
from pathlib import Path
from osim_core.corpus.executor import Local
from osim_core.corpus.stage import Stage
from tests.corpus.test_stage import JOBS, square
def killed(number, folder, name):
    if number == 3:
        (folder / "part-3.bin.1.partial").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return square(number, folder, name)
Stage(Path({str(stage.work)!r}), "square", {{"version": 1}}).run(killed, JOBS, Local(1))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert stage.run(square, JOBS, Local(1))[3] == {"square": 9}
    assert (stage.folder / "log").read_text().split() == [job.name for job in JOBS]
    assert (stage.folder / "part-3.bin").read_bytes() == bytes([3, 3, 3])


def wait_for_ever(number, folder: Path, name: str) -> dict:
    (folder / f"{name}.pid").write_text(str(os.getpid()))
    time.sleep(600)
    return {}


def is_running(pid: int) -> bool:
    """Neither gone nor only waiting for somebody to ask how it ended."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_the_pool_of_a_killed_build_ends_with_it(stage):
    """Its processes hold each other's pipes open, so without a watch they would wait for work for ever."""
    script = f"""
from pathlib import Path
from osim_core.corpus.executor import Local
from osim_core.corpus.stage import Stage
from tests.corpus.test_stage import JOBS, wait_for_ever
if __name__ == "__main__":
    Stage(Path({str(stage.work)!r}), "square", {{"version": 1}}).run(wait_for_ever, JOBS, Local(2))
"""
    main = stage.work.parent / "build.py"
    main.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    build = subprocess.Popen([sys.executable, main], env=environment)
    while len(pids := [int(path.read_text() or 0) for path in stage.folder.glob("*.pid")]) < 2 or not all(pids):
        assert build.poll() is None
        time.sleep(0.05)
    build.kill()
    build.wait()
    until = time.monotonic() + 60
    while any(map(is_running, pids)):
        assert time.monotonic() < until, "a process of the pool lives on"
        time.sleep(0.05)


def test_other_inputs_start_afresh(tmp_path, stage):
    stage.run(square, JOBS, Local(1))
    other = Stage(stage.work, "square", {"version": 2})
    assert other.folder != stage.folder and not other.folder.exists()
    assert Stage(stage.work, "square", {"version": 1}).key == stage.key
    assert json.loads((stage.folder / "part-5.json").read_text()) == {"square": 25}


def test_a_pool_needs_a_process():
    with pytest.raises(ValueError, match="at least 1"):
        Local(0)
