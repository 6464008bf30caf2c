"""What a judge reads: rubric, context, reply, question, in this order, up to where the answer word would begin.

The order makes prompts share: a rubric is one prefix for all items, a context one for all replies to it, a reply one
for all dimensions. `texts` gives the four parts as text, for servers that take messages; `JudgePrompt.paths` as token
ids, for judges that take those. Each part is tokenised by itself, so that a shared part has the same ids under
everything that follows it; text in an item can never become markup.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from osim_core.corpus.chat_template import choose_format
from osim_core.corpus.conversation import Conversation, Message
from osim_core.corpus.tokenizer import TURN_END, Tokenizer
from osim_core.judge.rubric import PAIR, Dimension, JudgeItem, Rubric

Tokens = tuple[int, ...]
VERSION = 1  # raised when the wording below changes


@dataclass(frozen=True, slots=True)
class Call:
    """An item in one order: `first` is the reply, or candidate A of a pair, and `second` candidate B."""

    context: str
    first: str
    second: str | None = None


def calls(rubric: Rubric, item: JudgeItem) -> tuple[Call, ...]:
    """One call, or for a pairwise rubric two: as given, and with the places swapped."""
    if not rubric.pairwise:
        return (Call(item.context, item.reply),)
    return (Call(item.context, item.reply, item.other), Call(item.context, item.other, item.reply))


def texts(rubric: Rubric, call: Call) -> tuple[str, str, str]:
    """(task, context, reply): the system message, and the first two parts of the user message."""
    context = f"# {rubric.context_title}\n{call.context}\n\n"
    if call.second is None:
        return rubric.task, context, f"# {rubric.reply_title}\n{call.first}\n\n"
    pair = zip(PAIR, (call.first, call.second), strict=True)
    return rubric.task, context, "".join(f"# {rubric.reply_title} {name}\n{text}\n\n" for name, text in pair)


def question(dimension: Dimension) -> str:
    """The last part of the user message, about one dimension."""
    return f"# Question\n{describe(dimension)}\nAnswer with one of these words alone: {', '.join(dimension.labels)}"


def describe(dimension: Dimension) -> str:
    """The question, and what those answers stand for that do not say it themselves."""
    anchors = zip(dimension.labels, dimension.anchors, strict=True)
    return "\n".join([dimension.question, *(f"{label} = {anchor}" for label, anchor in anchors if anchor)])


class JudgePrompt:
    """Prompts of one tokenizer and chat format as token ids.

    chat_format    "template", the tokenizer's own, or "chatml"
    answer_prefix  markup put between the header of the answer and the answer word, such as the empty think block of a
                   model that thinks by default
    ends           tokens that close an answer: the end of turn first

    Raises ValueError for a template that is not prefix-stable or knows no system message.
    """

    def __init__(self, tokenizer: Tokenizer, chat_format: str = "template", answer_prefix: str = "") -> None:
        format_, _ = choose_format(tokenizer, chat_format)
        probe = (Message("system", "task"), Message("user", "item"), Message("assistant", "answer"))
        system, user, assistant = format_.frames(Conversation("judge prompt", "judge", probe, ""))

        def markup(text: str) -> Tokens:
            return tuple(tokenizer.encode_markup(text).tolist())

        self.tokenizer = tokenizer
        self.identity = f"prompt {VERSION} {tokenizer.fingerprint} {chat_format} {answer_prefix!r}"
        self._opening, self._between = markup(system.before), markup(system.after + user.before)
        self._header = markup(user.after + format_.generation_prompt() + answer_prefix)
        end = markup(assistant.after or TURN_END)[:1]
        self.ends: tuple[Tokens, ...] = tuple(dict.fromkeys([end, *self.encode(["\n", ".", ",", " "])]))

    def encode(self, texts_: Sequence[str]) -> list[Tokens]:
        """Ids of plain text: nothing in it is markup."""
        return [tuple(ids.tolist()) for ids in self.tokenizer.encode_batch(texts_)]

    def paths(self, rubric: Rubric, calls_: Sequence[Call]) -> list[list[tuple[Tokens, Tokens, Tokens, Tokens]]]:
        """Per call and dimension the ids of the four parts; end to end they are the judge's prompt."""
        parts = [texts(rubric, call) for call in calls_]
        questions = [question(dimension) for dimension in rubric.dimensions]
        distinct = list(dict.fromkeys([*questions, *(text for part in parts for text in part)]))
        ids = dict(zip(distinct, self.encode(distinct), strict=True))
        asked = [ids[text] + self._header for text in questions]
        return [
            [(self._opening + ids[task] + self._between, ids[context], ids[reply], ask) for ask in asked]
            for task, context, reply in parts
        ]
