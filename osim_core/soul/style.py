"""Style: write as much as that person wrote, and ask if they asked. Scored by rule; made for 0.9 M-parameter models.

A reply to one line of chitchat, with length and form of the real answer told: "Write a short reply of 6 words, no
question." With N the told number of words and L the reply's, counted between white space,

    closeness = min((1 + L) / (1 + N), (1 + N) / (1 + L))
    question  = 1 if the reply holds a question mark exactly when the real one does, else 0
    score     = 0.75 closeness + 0.25 question, in [0, 1]; a reply that was cut has no length, so its closeness is 0

The targets are drawn from real replies, so a policy that scores 1 everywhere writes replies distributed as people's.
Telling them is what makes that the optimum: without it, the score of a prompt is linear in the policy's distribution,
and some constant is best. On the training split the best constant that does not listen (8 words, no question) scores
0.66, and people's distribution without listening 0.57.
"""

from collections.abc import Sequence

from osim_core.corpus.conversation import Conversation, Message
from osim_core.missing import Value
from osim_core.soul.chats import one_turn_each
from osim_core.soul.episode import POLICY, Episode, Outcome, Sample, Split, TaskSpec, Turn
from osim_core.soul.judged import mean
from osim_core.soul.single_turn import part, single_turn

LENGTH_WEIGHT = 0.75
# Prompt and reply together stay below the 256 bytes that tiny-cpu's documents are cut at
MAX_HEARD_BYTES, MAX_REPLY_BYTES, MAX_TOKENS = 64, 96, 112
MAX_WORDS = 16
SIZES = ((3, "tiny"), (7, "short"), (11, "medium"), (MAX_WORDS, "long"))


class Style:
    spec = TaskSpec(
        id="style",
        axis="CONV",
        version=1,
        origin="ours, on the Chit-Chat Challenge 2018 (package chitchat-dataset)",
        licence="MIT",
        chance=None,
        items={"train": 3078, "validation": 161, "test": 226},
    )

    def samples(self, split: Split) -> Sequence[Sample]:
        """fields: heard (the line that is answered), words and question (of the real reply)."""
        return [
            Sample(
                id=f"style/{chat.id}/{turn}",
                task="style",
                scenario=chat.group,
                fields={
                    "heard": chat.messages[turn - 1].content,
                    "words": count_words(chat.messages[turn].content),
                    "question": "?" in chat.messages[turn].content,
                },
                reference=chat.messages[turn].content,
            )
            for chat, turn in one_turn_each(split, _short)
        ]

    def episode(self, sample: Sample) -> Episode:
        fields = sample.fields
        messages = [
            Message("system", instruction(fields["words"], fields["question"])),
            Message("user", fields["heard"]),
        ]
        return single_turn(messages, MAX_TOKENS, lambda text: _examine(fields, text))

    def critique(self, sample: Sample, outcome: Outcome) -> str:
        """What to do better, for a second reply; "" where there is nothing."""
        fields = sample.fields
        said = []
        if outcome.values.get("length", 0.0) < 1.0 or outcome.ended == "length":
            said.append(f"Write {fields['words']} words.")
        if outcome.values.get("question", 0.0) < 1.0:
            said.append("Ask a question." if fields["question"] else "Ask no question.")
        return " ".join(said)

    def score(self, sample: Sample, outcome: Outcome, verdicts: object) -> Value:
        near = 0.0 if outcome.ended == "length" else part(outcome, "closeness")
        return mean([near, part(outcome, "question")], [LENGTH_WEIGHT, 1 - LENGTH_WEIGHT])


def instruction(words: int, question: bool) -> str:
    """The system message. A size in a word of its own is what a byte-level model can read first."""
    size = next(name for most, name in SIZES if words <= most)
    return f"Write a {size} reply of {words} words, {'a' if question else 'no'} question."


def count_words(text: str) -> int:
    return len(text.split())


def closeness(count: int, target: int) -> float:
    """In (0, 1]; 1 where they are equal, and the same for half as much as for twice."""
    return min((1 + count) / (1 + target), (1 + target) / (1 + count))


def _short(chat: Conversation, turn: int) -> bool:
    heard, reply = chat.messages[turn - 1], chat.messages[turn].content
    return (
        heard.role == "user"
        and "\n" not in heard.content
        and len(heard.content.encode()) <= MAX_HEARD_BYTES
        and len(reply.encode()) <= MAX_REPLY_BYTES
        and 1 <= count_words(reply) <= MAX_WORDS
    )


def _examine(fields, text: str) -> Outcome:
    values = {
        "closeness": closeness(count_words(text), fields["words"]),
        "question": float(("?" in text) == fields["question"]),
    }
    return Outcome(turns=(Turn("heard", fields["heard"]), Turn(POLICY, text)), values=values)
