"""Real vLLM in its own process keeps the contract of all engines, and is replaced when it dies.

The model has tied embeddings: on CPUs vLLM packs a tied head apart, which a push has to do again. test_engine_parity.py
has the untied one.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from osim_core.missing import Missing
from osim_core.rollout.checksum import checksum
from osim_core.rollout.engine import DIED, EngineStopped, Sampling
from osim_core.rollout.engines.vllm_engine import EngineOptions, VllmEngine
from tests.rollout import engine_contract as contract
from tests.rollout.push_cases import tiny

OPTIONS = EngineOptions(context=contract.CONTEXT, max_sequences=8, max_restarts=1)
GREEDY = [Sampling(max_tokens=8, temperature=0.0)] * len(contract.PROMPTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def served(folder):
    """(engine, the model it serves). The tests below run in this order: the last ones kill it for good."""
    truth = contract.reference(tiny(tied=True), folder)
    engine = VllmEngine(folder, OPTIONS)
    yield engine, truth
    engine.close()
    assert not engine.scratch.exists()


def kill_in_mid_call(engine: VllmEngine) -> threading.Thread:
    """Freeze the engine now, so that it cannot answer the call to come, and kill it while that call waits."""
    pid = engine.pid
    os.kill(pid, signal.SIGSTOP)

    def kill() -> None:
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_completions_are_sampled_as_asked(served):
    contract.completions_are_sampled_as_asked(*served)


def test_frequencies_are_the_models(served):
    contract.frequencies_are_the_models(*served)


def test_seeds_alone_decide(served):
    contract.seeds_alone_decide(served[0])


def test_a_stop_token_is_the_last_one(served):
    contract.a_stop_token_is_the_last_one(*served)


def test_scores_are_log_probs_of_every_token_but_the_first(served):
    contract.scores_are_log_probs_of_every_token_but_the_first(*served)


def test_what_does_not_fit_is_missing_and_alone(served):
    contract.what_does_not_fit_is_missing_and_alone(served[0])


def test_pushes_replace_the_weights_and_bad_ones_nothing(served):
    contract.pushes_replace_the_weights_and_bad_ones_nothing(*served)
    assert len(list(served[0].scratch.glob("version-*"))) == 1  # neither the old nor the refused ones are kept


def test_a_push_to_a_sleeping_engine_is_checked_at_once_and_loaded_when_it_wakes(served):
    engine, truth = served
    engine.sleep()
    with pytest.raises(ValueError, match="asleep"):
        engine.generate(contract.PROMPTS, GREEDY)
    torch.manual_seed(7)
    contract.shake(truth)
    weights = contract.weights_of(truth)
    version = engine.version + 1
    with pytest.raises(ValueError, match="announced"):
        engine.push(version, weights, "0" * 16)
    engine.push(version, weights, checksum(weights))
    engine.wake()
    assert engine.version == version
    contract.scores_are_log_probs_of_every_token_but_the_first(engine, truth)
    assert {done.version for done in engine.generate(contract.PROMPTS, GREEDY)} == {version}


def test_killed_in_mid_call_it_is_replaced_with_the_pushed_weights_and_answers(served):
    engine, _ = served
    wanted = [Sampling(max_tokens=12, seed=n) for n in range(len(contract.PROMPTS))]
    before, scratch = engine.generate(contract.PROMPTS, wanted), engine.version
    thread = kill_in_mid_call(engine)
    after = engine.generate(contract.PROMPTS, wanted)
    thread.join()
    assert [done.tokens for done in after] == [done.tokens for done in before]
    assert (engine.deaths, engine.version, after[0].version) == (1, scratch, scratch)


def test_dead_too_often_it_stops_with_one_resumable_line(served):
    engine, _ = served
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineStopped, match=r"died 2 times.*Resume"):
        engine.generate(contract.PROMPTS, GREEDY)


def test_a_context_beyond_the_models_positions_is_one_line(folder, served):
    with pytest.raises(ValueError, match="context 1025 is longer than the 1024 positions"):
        VllmEngine(folder, replace(OPTIONS, context=1025))


def test_a_folder_without_a_model_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        VllmEngine(tmp_path, OPTIONS)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no \*\.safetensors"):
        VllmEngine(tmp_path, OPTIONS)


@pytest.mark.slow
def test_what_kills_two_engines_in_a_row_is_missing_and_the_next_call_is_served(folder, served):
    engine = VllmEngine(folder, replace(OPTIONS, max_restarts=3))
    try:
        start = engine._start

        def start_and_die() -> None:
            start()
            os.kill(engine.pid, signal.SIGKILL)

        engine._start = start_and_die
        os.kill(engine.pid, signal.SIGKILL)
        lost = engine.generate(contract.PROMPTS, GREEDY)
        engine._start = start
        assert [(type(x), x.reason) for x in lost] == [(Missing, DIED)] * len(lost) and engine.deaths == 2
        assert len(engine.generate(contract.PROMPTS, GREEDY)[0].tokens) == 8
    finally:
        engine.close()


TRAINER = """
import sys, time
from pathlib import Path
from osim_core.rollout.engines.vllm_engine import EngineOptions, VllmEngine
engine = VllmEngine(Path(sys.argv[1]), EngineOptions(context=64))
print(engine.pid, engine.scratch, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_of_a_killed_trainer_the_engine_removes_the_snapshots_and_ends(folder, served):
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, folder], stdout=subprocess.PIPE, text=True)
    pid, scratch = trainer.stdout.readline().split()
    assert Path(scratch).is_dir() and psutil.pid_exists(int(pid))
    trainer.kill()
    trainer.wait()
    deadline = time.monotonic() + 60
    while Path(scratch).exists() or _runs(int(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    """Whether the process goes on; one that nobody has reaped yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_what_vllm_cannot_start_on_is_an_error_with_the_end_of_its_log(folder, served, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text().replace("Qwen3ForCausalLM", "NoModel"))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(RuntimeError, match="did not start"):
        VllmEngine(tmp_path, OPTIONS)
