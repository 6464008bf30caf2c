"""Transcripts: everything is there, as data and for people, and a reply's markdown does not act.

pytest tests/rollout/test_transcripts.py
"""

import json

import pytest

from osim_core.corpus import tokenizer as tokenizers
from osim_core.corpus.conversation import Message
from osim_core.corpus.render import Renderer
from osim_core.rollout.runner import EngineSpeaker, Start, run
from osim_core.rollout.transcripts import write_transcripts
from osim_core.soul.tomi import ToMi
from tests.rollout.seeded_engine import SeededEngine


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    return Renderer(tokenizers.train(["yes no well ok then"] * 50, folder, vocab_size=259))


@pytest.fixture
def written(renderer, tmp_path):
    task = ToMi()
    starts = [Start(task, sample, replica) for sample in task.samples("test")[:3] for replica in range(2)]
    policy = EngineSpeaker(SeededEngine(renderer.tokenizer, missing_every=4), renderer, 2000)
    trajectories = run(starts, {"policy": policy}, seed=1)
    notes = [{"raw": index / 10, "final": 0.0, "detectors": {"recital": True}} for index in range(6)]
    write_transcripts(tmp_path / "rollouts", "step-000003", trajectories, notes)
    return trajectories, tmp_path / "rollouts"


def test_data_hold_every_trajectory_in_order(written):
    trajectories, folder = written
    rows = [json.loads(line) for line in (folder / "step-000003.jsonl").read_text().splitlines()]
    assert [(row["sample"], row["replica"]) for row in rows] == [(t.sample.id, t.replica) for t in trajectories]
    assert {row["ended"] for row in rows} == {"done", "engine died"}
    for index, (row, trajectory) in enumerate(zip(rows, trajectories, strict=True)):
        ledger = trajectory.ledgers[""]
        own = [logprob for logprob, policy in zip(ledger.logprobs, ledger.is_policy, strict=True) if policy]
        stored = row["ledgers"][""]
        assert (stored["tokens"], stored["policy_tokens"]) == (len(ledger.tokens), len(own))
        assert stored["mean_logprob"] == (pytest.approx(sum(own) / len(own)) if own else None)
        assert [m["content"] for m in stored["messages"]] == [m.content for m in ledger.messages]
        assert row["notes"]["raw"] == index / 10
        assert row["versions"] == ([3] if row["ended"] == "done" else [])


def test_pages_show_the_prompt_once_and_every_reply_with_its_scores(written):
    trajectories, folder = written
    page = (folder / "step-000003.md").read_text()
    for trajectory in trajectories:
        prompt = trajectory.ledgers[""].messages[0].content.splitlines()[-1]
        assert prompt in page
        for turn in trajectory.outcome.turns:
            assert f"    {turn.text}" in page
    stories = [trajectory.sample.scenario for trajectory in trajectories[::2]]
    assert all(page.count(story) == stories.count(story) for story in stories)
    assert page.count('- detectors: {"recital": true}') == 6 and page.count("### replica 1: ") == 3


def test_markup_in_a_reply_is_shown_as_text(written):
    trajectories, folder = written
    trajectories[0].ledgers[""].messages[-1] = Message("assistant", "# I win\n- a")
    write_transcripts(folder, "again", trajectories, [{}] * 6)
    assert "\n    # I win\n    - a\n" in (folder / "again.md").read_text()


def test_a_note_for_each_trajectory_or_none_is_written(written):
    trajectories, folder = written
    with pytest.raises(ValueError):
        write_transcripts(folder, "short", trajectories, [{}])
    assert not list(folder.glob("short*"))
