"""Style and next turn: people apart, prompts as midtraining shows them, scores by their formulas, what constants score.

pytest tests/soul/test_chats.py
"""

import random

import pytest

from osim_core.corpus import tokenizer as tokenizers
from osim_core.corpus.conversation import Conversation
from osim_core.corpus.render import Renderer
from osim_core.judge.rubric import Verdict
from osim_core.missing import Missing
from osim_core.soul.chats import by_person
from osim_core.soul.episode import Reply, play
from osim_core.soul.next_turn import NextTurn
from osim_core.soul.style import MAX_TOKENS, Style, closeness, instruction

SPLITS = ("train", "validation", "test")


def score(task, sample, text, finish="stop", verdicts=None):
    outcome = play(task.episode(sample), lambda ask: Reply(text, finish))
    return task.score(sample, outcome, verdicts or {})


def write(words: int, question: bool) -> str:
    return " ".join(["so"] * words) + ("?" if question else "")


def mean_score(samples, policy) -> float:
    scores = [score(Style(), sample, policy(sample)) for sample in samples]
    return sum(scores) / len(scores)


@pytest.mark.parametrize("task", [Style(), NextTurn(), NextTurn(short=True)], ids=lambda task: task.spec.id)
def test_items_are_as_the_spec_says_and_nobody_is_on_two_sides(task):
    sides = {split: task.samples(split) for split in SPLITS}
    assert {split: len(samples) for split, samples in sides.items()} == dict(task.spec.items)
    people = [{sample.scenario for sample in samples} for samples in sides.values()]
    assert sum(map(len, people)) == len(set.union(*people))


def test_training_chats_hold_no_word_of_people_held_out():
    people = {split: {chat.group for chat in chats} for split, chats in by_person().items()}
    partners = {other for chat in by_person()["train"] for other in chat.others}
    assert not partners & (people["validation"] | people["test"])
    validation_partners = {other for chat in by_person()["validation"] for other in chat.others}
    assert not validation_partners & people["test"]


class TestStyle:
    def test_the_formula(self):
        sample = next(s for s in Style().samples("train") if s.fields["words"] == 6 and not s.fields["question"])
        assert score(Style(), sample, write(6, False)) == 1.0
        assert score(Style(), sample, write(6, True)) == 0.75
        assert score(Style(), sample, write(13, False)) == pytest.approx(0.75 * 7 / 14 + 0.25)
        assert score(Style(), sample, "") == pytest.approx(0.75 * 1 / 7 + 0.25)
        assert score(Style(), sample, write(6, False), "length") == 0.25  # cut: it has no length
        assert score(Style(), sample, Missing("engine died")) == Missing("engine died")

    def test_closeness_is_symmetric_in_ratio_and_one_only_where_equal(self):
        for target in range(1, 17):
            assert closeness(target, target) == 1.0
            assert all(0 < closeness(count, target) < 1 for count in range(200) if count != target)
            assert closeness(2 * target + 1, target) == pytest.approx(0.5)

    def test_following_is_best_and_makes_the_replies_peoples(self):
        samples = Style().samples("train")
        written = [write(s.fields["words"], s.fields["question"]) for s in samples]
        assert mean_score(samples, lambda s: write(s.fields["words"], s.fields["question"])) == 1.0
        human = [s.reference for s in samples]
        assert sorted(len(text.split()) for text in written) == sorted(len(text.split()) for text in human)
        assert sum("?" in text for text in written) == sum("?" in text for text in human)

    def test_no_constant_and_no_policy_that_does_not_listen_comes_near(self):
        samples = Style().samples("train")
        constants = [mean_score(samples, lambda s, n=n: write(n, False)) for n in range(4, 13)]
        assert max(constants) == constants[4] == pytest.approx(0.659, abs=0.001)  # 8 words
        shuffled = random.Random(0).sample(samples, len(samples))
        told_by_others = dict(zip((s.id for s in samples), shuffled, strict=True))

        def deaf(sample):  # people's own distribution, drawn without regard to what was told
            other = told_by_others[sample.id].fields
            return write(other["words"], other["question"])

        assert mean_score(samples, deaf) == pytest.approx(0.565, abs=0.015)

    def test_the_instruction_names_the_size_first(self):
        assert instruction(3, False) == "Write a tiny reply of 3 words, no question."
        assert instruction(4, True) == "Write a short reply of 4 words, a question."
        assert instruction(11, False).startswith("Write a medium ") and instruction(16, False).startswith(
            "Write a long "
        )

    def test_prompt_and_reply_fit_the_documents_of_tiny_cpu(self, tmp_path):
        renderer = Renderer(tokenizers.train(["abc"], tmp_path, vocab_size=260))
        longest = 0
        for sample in Style().samples("train")[:400]:
            (ask,) = next(Style().episode(sample))
            longest = max(longest, len(renderer.prompt(ask.messages)))
            assert len(sample.reference.encode()) < MAX_TOKENS
        assert longest + MAX_TOKENS <= 256


class TestNextTurn:
    def test_the_prompt_is_the_chat_as_midtraining_shows_it(self, tmp_path):
        renderer = Renderer(tokenizers.train(["abc"], tmp_path, vocab_size=260))
        chats = {chat.id: chat for chat in by_person()["test"]}
        for sample in NextTurn().samples("test")[:20]:
            name, _, turn = sample.id.removeprefix("next_turn/").rpartition("/")
            chat = chats[name]
            (ask,) = next(NextTurn().episode(sample))
            trained = renderer.render([Conversation("c", "c", chat.messages, "")])[0]
            prompt = renderer.prompt(ask.messages)
            assert trained.tokens[: len(prompt)].tolist() == prompt.tolist()
            said = renderer.tokenizer.encode_batch([sample.reference])[0]
            assert trained.tokens[len(prompt) :][: len(said)].tolist() == said.tolist()
            assert chat.messages[int(turn)].content == sample.reference

    def test_the_judge_sees_the_chat_and_never_the_real_reply(self):
        for sample in NextTurn().samples("test"):
            outcome = play(NextTurn().episode(sample), lambda ask: Reply("zzz", "stop"))
            (item,) = outcome.judgements
            assert item.reply == "zzz" and "zzz" not in item.context and item.id == sample.id
            earlier = [message.content for message in sample.fields["messages"]]
            assert item.context.count("\n") >= len(earlier) - 1 and item.context.startswith("Scene: ")
            assert sample.reference in earlier or f"Person: {sample.reference}" not in item.context

    def test_short_ones_are_chats_that_a_reader_of_bytes_can_hold(self):
        lengths = [
            sum(len(message.content) for message in sample.fields["messages"])
            for sample in NextTurn(short=True).samples("validation")
        ]
        assert (
            max(lengths)
            <= 480
            < max(
                sum(len(message.content) for message in sample.fields["messages"])
                for sample in NextTurn().samples("validation")
            )
        )

    def test_scores_are_the_judges_or_missing(self):
        sample = NextTurn().samples("test")[0]
        verdict = Verdict(values={"likeness": 0.7}, score=0.7)
        assert score(NextTurn(), sample, "hi", verdicts={sample.id: verdict}) == 0.7
        failed = Verdict(values={}, score=Missing("timeout"))
        assert score(NextTurn(), sample, "hi", verdicts={sample.id: failed}) == Missing("timeout")
        assert score(NextTurn(), sample, "hi") == Missing("not judged", sample.id)
        assert score(NextTurn(), sample, " \n") == 0.0  # an empty turn is the policy's own failure
        assert score(NextTurn(), sample, Missing("too long")) == Missing("too long")
