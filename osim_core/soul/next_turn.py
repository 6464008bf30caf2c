"""Next turn: given a chat so far, write what this person writes next. A judge and the real reply say how well.

The prompt is the conversation as midtraining shows it: the scene, the other's messages, the person's own ones. Two
rewards fit it. A judge rates the reply in its context (`score`), and the log-likelihood of the real reply
(`sample.reference`) needs no sampling at all (osim_core/reward/likelihood.py). The judge never sees the real reply.
"""

from collections.abc import Mapping, Sequence

from osim_core.corpus.conversation import Conversation
from osim_core.judge.rubric import JudgeItem, Verdict
from osim_core.missing import Value
from osim_core.soul.chats import one_turn_each
from osim_core.soul.episode import POLICY, Episode, Outcome, Sample, Split, TaskSpec, Turn
from osim_core.soul.judged import verdict_score
from osim_core.soul.single_turn import part, single_turn

RUBRIC = "next_turn"
MAX_TOKENS = 256
MIN_HISTORY, MAX_HISTORY_CHARACTERS = 3, 6000  # the scene and both sides once; longer chats are not cut, but left out
MAX_SHORT_CHARACTERS, MAX_SHORT_TOKENS = 360, 384
ITEMS = {"train": 3588, "validation": 190, "test": 255}
SHORT_ITEMS = {"train": 2628, "validation": 138, "test": 190}
NAMES = {"system": "Scene", "user": "Other", "assistant": "Person"}


class NextTurn:
    """short: only chats of at most MAX_SHORT_CHARACTERS so far, and more tokens for a reply, for models of bytes."""

    def __init__(self, short: bool = False) -> None:
        self.most = MAX_SHORT_CHARACTERS if short else MAX_HISTORY_CHARACTERS
        self.max_tokens = MAX_SHORT_TOKENS if short else MAX_TOKENS
        self.spec = TaskSpec(
            id="next_turn_short" if short else "next_turn",
            axis="CONV",
            version=1,
            origin="ours, on the Chit-Chat Challenge 2018 (package chitchat-dataset)",
            licence="MIT",
            chance=None,
            judged=True,
            items=SHORT_ITEMS if short else ITEMS,
        )

    def samples(self, split: Split) -> Sequence[Sample]:
        """fields: messages, the chat before the turn."""
        return [
            Sample(
                id=f"{self.spec.id}/{chat.id}/{turn}",
                task=self.spec.id,
                scenario=chat.group,
                fields={"messages": chat.messages[:turn]},
                reference=chat.messages[turn].content,
            )
            for chat, turn in one_turn_each(split, self._answers)
        ]

    def episode(self, sample: Sample) -> Episode:
        return single_turn(sample.fields["messages"], self.max_tokens, lambda text: self._examine(sample, text))

    def _examine(self, sample: Sample, text: str) -> Outcome:
        turns = (*(Turn(NAMES[m.role], m.content) for m in sample.fields["messages"]), Turn(POLICY, text))
        if not text.strip():  # nothing to judge, and the policy's own doing
            return Outcome(turns=turns, values={"answered": 0.0})
        context = "\n".join(f"{turn.speaker}: {turn.text}" for turn in turns[:-1])
        item = JudgeItem(id=sample.id, rubric=RUBRIC, context=context, reply=text)
        return Outcome(turns=turns, values={"answered": 1.0}, judgements=(item,))

    def score(self, sample: Sample, outcome: Outcome, verdicts: Mapping[str, Verdict]) -> Value:
        answered = part(outcome, "answered")
        return verdict_score(verdicts, sample.id) if answered == 1.0 else answered

    def _answers(self, chat: Conversation, turn: int) -> bool:
        """Whether the turn answers somebody, in a chat that is under way."""
        return (
            turn >= MIN_HISTORY
            and chat.messages[turn - 1].role == "user"
            and sum(len(message.content) for message in chat.messages[:turn]) <= self.most
        )
