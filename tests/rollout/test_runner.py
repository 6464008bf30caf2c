"""Running many episodes: batched per speaker, the same in any company, failures missing where they happened.

pytest tests/rollout/test_runner.py
"""

import random
from collections import Counter
from dataclasses import replace

import pytest

from osim_core.corpus import tokenizer as tokenizers
from osim_core.corpus.conversation import Message
from osim_core.corpus.render import Renderer
from osim_core.missing import Missing
from osim_core.rollout.runner import ChatSpeaker, EngineSpeaker, Start, groups, reply_seed, run
from osim_core.soul.episode import Ask, Outcome, Sample, TaskSpec, Turn
from osim_core.soul.single_turn import unanswered
from tests.rollout.seeded_engine import SeededEngine


class Chain:
    """Policy and partner speak in turn, `rounds` times; each hears only what is new."""

    spec = TaskSpec(
        id="chain", axis="CONV", version=1, origin="test", licence="none", chance=None, items={}, roles=("partner",)
    )

    def samples(self, split):
        return [Sample(id=f"chain/{n}", task="chain", scenario=str(n), fields={"rounds": 1 + n % 4}) for n in range(12)]

    def episode(self, sample):
        said, turns = f"start {sample.id}", []
        for _ in range(sample.fields["rounds"]):
            for speaker in ("policy", "partner"):
                ask = Ask(speaker=speaker, messages=(Message("user", said),), max_tokens=60)
                (reply,) = yield (ask,)
                if isinstance(reply.text, Missing):
                    return unanswered(tuple(turns), reply.text)
                said = reply.text
                turns.append(Turn(speaker, said))
        return Outcome(turns=tuple(turns), values={"rounds": float(len(turns) // 2)})

    def score(self, sample, outcome, verdicts):
        return outcome.values.get("rounds", Missing(outcome.ended))


class Both(Chain):
    """Two voices of the policy in one step: they speak at the same time, each in its own ledger."""

    spec = TaskSpec(id="both", axis="SS", version=1, origin="test", licence="none", chance=None, items={})

    def samples(self, split):
        return [replace(sample, task="both") for sample in super().samples(split)]

    def episode(self, sample):
        asks = [Ask(speaker="policy", messages=(Message("user", n),), max_tokens=60, ledger=n) for n in ("a", "b")]
        first, second = yield tuple(asks)
        return Outcome(turns=(Turn("a", first.text), Turn("b", second.text)), values={})


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    return Renderer(tokenizers.train(["yes no well ok then"] * 50, folder, vocab_size=259))


def echo(requests):
    """A partner that answers with what it heard last, and how often it was asked in this conversation."""
    return [f"{sum(m.role == 'user' for m in r.messages)}: {r.messages[-1].content[:20]}" for r in requests]


def speakers(renderer, partner=echo, context=2000, **engine):
    policy = EngineSpeaker(SeededEngine(renderer.tokenizer, **engine), renderer, context)
    return {"policy": policy, "partner": ChatSpeaker(partner)}


def starts(replicas=2):
    return [Start(Chain(), sample, r) for sample in Chain().samples("train") for r in range(replicas)]


def contents(trajectory):
    return (
        trajectory.outcome,
        {name: (ledger.tokens, ledger.logprobs, ledger.versions) for name, ledger in trajectory.ledgers.items()},
    )


def test_the_asks_of_all_episodes_are_one_engine_call_a_round(renderer):
    cast = speakers(renderer)
    played = run(starts(), cast, seed=1)
    assert [t.sample.id for t in played] == [s.sample.id for s in starts()]
    # 24 episodes of 1 to 4 rounds; fewer go on each time
    assert cast["policy"].engine.calls == [24, 18, 12, 6]
    assert {t.outcome.values["rounds"] for t in played} == {1.0, 2.0, 3.0, 4.0}
    assert all(t.versions == {3} for t in played)


def test_an_episode_is_the_same_alone_and_in_any_order(renderer):
    together = {(t.sample.id, t.replica): contents(t) for t in run(starts(), speakers(renderer), seed=1)}
    shuffled = starts()
    random.Random(0).shuffle(shuffled)
    for trajectory in run(shuffled, speakers(renderer), seed=1):
        assert contents(trajectory) == together[trajectory.sample.id, trajectory.replica]
    alone = starts()[5]
    (trajectory,) = run([alone], speakers(renderer), seed=1)
    assert contents(trajectory) == together[alone.sample.id, alone.replica]


def test_replicas_steps_rounds_and_ledgers_draw_differently(renderer):
    first, second = run(starts()[6:8], speakers(renderer), seed=1)
    assert contents(first) != contents(second)
    (other_step,) = run(starts()[6:7], speakers(renderer), seed=2)
    assert contents(other_step) != contents(first)
    both = run([Start(Both(), Both().samples("train")[0])], speakers(renderer), seed=1)[0]
    assert both.ledgers.keys() == {"a", "b"}
    assert both.outcome.turns[0].text != both.outcome.turns[1].text


def test_no_two_replies_share_a_seed_not_even_of_one_episode(renderer):
    cast = speakers(renderer)
    run([*starts(), *(Start(Both(), sample) for sample in Both().samples("train"))], cast, seed=1)
    seeds = cast["policy"].engine.seeds
    assert len(set(seeds)) == len(seeds) == 24 + 18 + 12 + 6 + 2 * 12


def test_seeds_are_fixed_numbers_of_31_bits():
    assert reply_seed(1, "tomi", "tomi/3", 0, 0, "policy", "") == 744914637
    drawn = [reply_seed(0, index) for index in range(4000)]
    assert len(set(drawn)) == 4000 and min(drawn) >= 0 and 2**30 < max(drawn) < 2**31


def test_groups_are_the_replicas_of_a_sample(renderer):
    played = run(starts(replicas=3), speakers(renderer), seed=1)
    found = groups(played[::-1])
    assert [len(group) for group in found] == [3] * 12
    assert all(len({t.sample.id for t in group}) == 1 for group in found)


def test_a_failed_reply_is_missing_in_its_own_episode_only(renderer):
    whole = {(t.sample.id, t.replica): t for t in run(starts(), speakers(renderer), seed=1)}
    played = run(starts(), speakers(renderer, missing_every=5), seed=1)
    ended = Counter(t.outcome.ended for t in played)
    assert ended["engine died"] > 0 and ended["done"] > 0 and ended.total() == 24
    for trajectory in played:
        expected = whole[trajectory.sample.id, trajectory.replica]
        if trajectory.outcome.ended == "done":
            assert contents(trajectory) == contents(expected)
        else:
            assert Chain().score(trajectory.sample, trajectory.outcome, {}) == Missing("engine died")
            kept = len(trajectory.outcome.turns)
            assert trajectory.outcome.turns == expected.outcome.turns[:kept]


@pytest.mark.parametrize("failure", [Missing("partner down", "HTTP 500: overloaded"), "", " \n"])
def test_a_partners_failure_never_becomes_dialogue(renderer, failure):
    def failing(requests):
        return [failure if "chain/5" in r.messages[0].content or len(r.messages) > 2 else "fine" for r in requests]

    played = run(starts(), speakers(renderer, partner=failing), seed=1)
    reasons = Counter(t.outcome.ended for t in played)
    assert reasons == {"done": 6, getattr(failure, "reason", "empty reply"): 18}
    for trajectory in played:
        text = " ".join(m.content for m in trajectory.ledgers[""].messages)
        assert "500" not in text and "Missing" not in text
        assert all(turn.text == "fine" for turn in trajectory.outcome.turns if turn.speaker == "partner")


def test_an_episode_that_outgrows_its_context_ends_as_too_long(renderer):
    played = run(starts(), speakers(renderer, context=260), seed=1)
    ended = Counter(t.outcome.ended for t in played)
    assert ended["too long"] > 0 and ended["done"] >= 6
    for trajectory in played:
        ledger = trajectory.ledgers[""]
        assert len(ledger.tokens) <= 260
        assert renderer.tokenizer.decode(ledger.tokens).startswith("<|im_start|>user\nstart chain/")


def test_an_engine_may_play_the_partner_too(renderer):
    cast = speakers(renderer)
    cast["partner"] = EngineSpeaker(SeededEngine(renderer.tokenizer, version=9), renderer, 2000)
    played = run(starts(), cast, seed=1)
    assert {t.outcome.ended for t in played} == {"done"}
    assert all(t.versions == {3} and t.ledgers.keys() == {""} for t in played)


def test_bad_starts_are_refused_in_one_line(renderer):
    cast = speakers(renderer)
    with pytest.raises(ValueError, match="nobody plays partner"):
        run(starts(), {"policy": cast["policy"]}, seed=1)
    with pytest.raises(ValueError, match="replica 0 of sample chain/0 is asked for 2 times"):
        run([starts()[0]] * 2, cast, seed=1)


def test_a_fault_in_a_task_names_the_sample(renderer):
    class Broken(Chain):
        def episode(self, sample):
            yield from super().episode(sample)
            raise KeyError("gold")

    with pytest.raises(KeyError) as fault:
        run([Start(Broken(), Chain().samples("train")[2])], speakers(renderer), seed=1)
    assert "chain/2" in " ".join(fault.value.__notes__)
