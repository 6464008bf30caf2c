"""Chat formats as frames: the text that a format puts before and after each message; used by render.py.

A conversation then costs its own length, because each message is framed once. `ChatML` is the plain format of the
Qwen and SmolLM families. `JinjaTemplate` learns the frames of any other template from rendering short placeholder
conversations, and proves on every real conversation that frames and template agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from osim_core.corpus.conversation import Conversation, Message
from osim_core.corpus.tokenizer import CHATML_TEMPLATE, TEXT_END, TURN_END, TURN_START, Tokenizer


@dataclass(frozen=True, slots=True)
class Frame:
    """`before` + content + `after`; `strips` if the template removes white space around the content."""

    before: str
    after: str
    strips: bool = False

    def content(self, message: Message) -> str:
        return message.content.strip() if self.strips else message.content


class ChatFormat(Protocol):
    def frames(self, conversation: Conversation) -> list[Frame]:
        """One frame a message. Raises ValueError naming the conversation if the format cannot hold it."""
        ...

    def generation_prompt(self) -> str:
        """What precedes an assistant's content when the model is to write it."""
        ...


class ChatML:
    """<|im_start|>role, newline, content, <|im_end|>, newline."""

    FRAMES = {  # noqa: RUF012 - a constant table
        role: Frame(f"{TURN_START}{role}\n", f"{TURN_END}\n") for role in ("system", "user", "assistant", "tool")
    }

    def frames(self, conversation: Conversation) -> list[Frame]:
        return [self.FRAMES[message.role] for message in conversation.messages]

    def generation_prompt(self) -> str:
        return self.FRAMES["assistant"].before


class JinjaTemplate:
    """A tokenizer's own chat template.

    Accepted only if it is prefix-stable: adding a message only ever appends text. Otherwise a turn is trained
    under another prefix than the one it is sampled under; Qwen3's template, for example, writes an empty think
    block into the last assistant turn only, and drops it once a user has answered.

    The check: the frame of a message depends on its role and the role before it, and is learnt from a placeholder
    conversation by difference, so frames are prefix-stable by construction. Each real conversation of n messages is
    then rendered by the template at lengths n, n - 1, n / 2, n / 4, ... and must equal its frames each time. That
    renders less than 3 n messages in all. It catches what depends on being last (n and n - 1) and on position.
    """

    def __init__(self, template: str, variables: dict[str, str]) -> None:
        self._template, self._variables = template, variables
        self._frames: dict[tuple[str | None, str], Frame] = {}

    def render(self, messages: Sequence[Message], where: str, generation_prompt: bool = False) -> str:
        """The template's own text of `messages`. Raises ValueError if the template refuses them."""
        # transformers takes seconds to import, and only templates other than ChatML need it
        from jinja2.exceptions import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        chat = [{"role": m.role, "content": m.content} for m in messages]
        try:
            texts, _ = render_jinja_template(
                conversations=[chat],
                chat_template=self._template,
                add_generation_prompt=generation_prompt,
                **self._variables,
            )
        except (
            TemplateError,
            TypeError,
            AttributeError,
            KeyError,
        ) as error:  # whatever the template's code hits
            raise ValueError(f"{where}: the chat template refuses it ({error}); {_advice()}") from error
        return texts[0]

    def frames(self, conversation: Conversation) -> list[Frame]:
        messages, where = conversation.messages, f"document {conversation.id!r}"
        frames = []
        for i, message in enumerate(messages):
            key = (messages[i - 1].role if i else None, message.role)
            if key not in self._frames:
                self._frames[key] = self._learn([m.role for m in messages[: i + 1]], where)
            frames.append(self._frames[key])
        pieces = [f.before + f.content(m) + f.after for f, m in zip(frames, messages, strict=True)]
        for length in sorted({len(pieces), max(1, len(pieces) - 1), *_halvings(len(pieces))}):
            if self.render(messages[:length], where) != "".join(pieces[:length]):
                raise ValueError(
                    f"{where}: the chat template is not prefix-stable: its text of the first {length} of "
                    f"{len(messages)} messages is not made of the messages before; {_advice()}"
                )
        return frames

    def _learn(self, roles: list[str], where: str) -> Frame:
        """The frame of the last of `roles`, by rendering placeholders with and without it."""
        placeholders = [Message(role, f" placeholder{i:06d} ") for i, role in enumerate(roles)]
        text = self.render(placeholders, where)
        earlier = self.render(placeholders[:-1], where) if len(roles) > 1 else ""
        before, mark, after = text.removeprefix(earlier).partition(placeholders[-1].content.strip())
        if not text.startswith(earlier) or not mark:
            problem = "rewrites earlier messages when one is added" if mark else "leaves out a message"
            raise ValueError(
                f"{where}: the chat template is not prefix-stable: it {problem} "
                f"(roles {', '.join(roles[-3:])}); {_advice()}"
            )
        if before.endswith(" ") and after.startswith(" "):
            return Frame(before[:-1], after[1:])
        return Frame(before, after, strips=True)

    def generation_prompt(self) -> str:
        user = [Message("user", "placeholder")]
        text = self.render(user, "generation prompt")
        return self.render(user, "generation prompt", generation_prompt=True).removeprefix(text)


def choose_format(tokenizer: Tokenizer, chat_format: str) -> tuple[ChatFormat, bool]:
    """The format to train in, and whether it is known to equal ChatML for system, user and assistant turns.

    `chat_format` is "template" (the tokenizer's own) or "chatml" (plain ChatML whatever the tokenizer carries).
    Raises ValueError if the tokenizer lacks the template or the ChatML tokens that this needs.
    """
    has_chatml = {TURN_START, TURN_END} <= tokenizer.specials.keys()
    if chat_format == "chatml":
        if not has_chatml:
            raise ValueError(
                f"tokenizer {tokenizer.where}: chat_format chatml needs the special tokens {TURN_START} and {TURN_END}"
            )
        return ChatML(), True
    if tokenizer.chat_template is None:
        fix = "set data.chat_format=chatml" if has_chatml else "add chat_template.jinja to its folder"
        raise ValueError(f"tokenizer {tokenizer.where}: it has no chat template; {fix}")
    if tokenizer.chat_template == CHATML_TEMPLATE and has_chatml:
        return ChatML(), True
    jinja = JinjaTemplate(tokenizer.chat_template, tokenizer.variables)
    return jinja, has_chatml and _equals_chatml(jinja)


def _equals_chatml(jinja: JinjaTemplate) -> bool:
    """Whether the template writes plain ChatML for probes that exercise what templates are known to vary.

    No system message (Qwen2.5 adds one), repeated roles, white space around content, think blocks, other markup,
    an assistant turn in last and in earlier place.
    """
    system, user, assistant = Message("system", "s"), Message("user", " u\n"), Message("assistant", "\n a ")
    thinking = Message("assistant", "<think>\nt\n</think>\n\na")
    markup = Message("user", f"<tool_response>x</tool_response>{TEXT_END}")
    probes = (
        (user, assistant),
        (system, user, assistant, user, assistant),
        (assistant, user, assistant, user),
        (system, assistant, assistant, user, user),
        (user, thinking, user, thinking),
        (system, markup, assistant, markup, assistant),
        (Message("system", ""), user, Message("assistant", "")),
    )
    chatml = ChatML()
    for messages in probes:
        frames = chatml.frames(Conversation("probe", "probe", messages, "probe"))
        text = "".join(f.before + m.content + f.after for f, m in zip(frames, messages, strict=True))
        try:
            if jinja.render(messages, "probe") != text:
                return False
        except ValueError:  # the template refuses roles that ChatML accepts
            return False
    return True


def _halvings(length: int) -> list[int]:
    halves = []
    while length := length // 2:
        halves.append(length)
    return halves


def _advice() -> str:
    return "set data.chat_format=chatml to train in plain ChatML, or use a template that only appends"
