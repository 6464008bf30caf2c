"""The vLLM judge gives the in-process judge's verdicts, and survives the death of its engine."""

import os
import signal

import pytest

from osim_core.judge.rubric import JudgeItem
from osim_core.judge.vllm_judge import VllmJudge
from osim_core.missing import Missing
from osim_core.rollout.engines.vllm_engine import EngineOptions
from tests.judge.cases import CHAT, judged, rubrics, some_items, tiny_judge

ITEMS = some_items()


@pytest.mark.slow
def test_equals_the_in_process_judge_and_outlives_its_engine(workers, tmp_path):
    folder = tiny_judge(tmp_path)
    long = JudgeItem(id="long", rubric="next_turn", context=CHAT, reply="word " * 400)
    ((truth, _),) = workers(1).run(judged, folder=folder, items=[*ITEMS, long])
    options = EngineOptions(context=1536, max_sequences=16)
    judge = VllmJudge.from_hf("held out", folder, rubrics(), options, min_mass=0.0)
    try:
        found = judge.score([*ITEMS, long])
        for one, two in zip(found[:-1], truth[:-1], strict=True):
            assert one.values == pytest.approx(two.values, abs=1e-4)
            assert one.score == pytest.approx(two.score, abs=1e-4)
        assert isinstance(found[-1].score, Missing) and found[-1].score.reason == truth[-1].score.reason
        os.kill(judge.engine.pid, signal.SIGKILL)
        again = judge.score(ITEMS)
        assert judge.engine.deaths == 1
        assert [v.values for v in again] == [pytest.approx(v.values, abs=1e-5) for v in found[:-1]]
    finally:
        judge.close()
