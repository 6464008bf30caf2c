"""Conversations to token documents: tokens, the spans that carry loss, and where each turn begins.

Sits between the sources and the shards (prepare.py), and writes the prompts of sampling (`Renderer.prompt`).
The work is linear in a conversation's length: every message is framed once (chat_template.py) and tokenised once,
and all contents of a batch go to the tokenizer in one call.

Loss falls on what an assistant turn has to produce when it is sampled: its content and the end-of-turn token. The
header is given to the model, and the newline that ChatML puts after the end of a turn belongs to the next header:
sampling stops before it, so a model never has to write it.
"""

from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np

from osim_core.corpus.chat_template import ChatML, Frame, choose_format
from osim_core.corpus.conversation import Conversation, Message, RenderedDocument
from osim_core.corpus.tokenizer import Tokenizer

PROBES = ("a", "Two words.", "caf\u00e9 \u732b 12", "line\nline", "ends here\n", "?!")


class Renderer:
    """Renders conversations with one tokenizer in one chat format ("template": the tokenizer's own; "chatml").
    Raises ValueError for a tokenizer that lacks what the format needs.
    """

    def __init__(self, tokenizer: Tokenizer, chat_format: str = "template") -> None:
        self.tokenizer = tokenizer
        self._format, self._chatml = choose_format(tokenizer, chat_format)
        self._plain = ChatML()
        self._markup = lru_cache(maxsize=4096)(tokenizer.encode_markup)
        self._checked: set[tuple[Frame, bool]] = set()

    @cached_property
    def end_of_turn(self) -> int:
        """Id of the token that ends an assistant turn; sampling stops there."""
        probe = (Message("user", "u"), Message("assistant", "a"))
        return int(self._markup(self._frames(Conversation("probe", "probe", probe, ""))[-1].after)[0])

    def render(self, conversations: Sequence[Conversation]) -> list[RenderedDocument]:
        """Token documents in the same order.

        The ids equal the tokenizer's ids of the template's full text, with one exception on purpose: content is
        tokenised apart from its header, as it is in sampling, so a content that begins with white space never shares
        a token with the header. Raises ValueError naming the conversation that the chat format cannot hold.
        """
        frames = [self._frames(conversation) for conversation in conversations]
        contents = [
            frame.content(message)
            for conversation, its_frames in zip(conversations, frames, strict=True)
            for frame, message in zip(its_frames, conversation.messages, strict=True)
        ]
        distinct = list(dict.fromkeys(contents))  # a chat seen from both sides holds every turn twice
        encoded = dict(zip(distinct, self.tokenizer.encode_batch(distinct), strict=True))
        ids = iter(encoded[content] for content in contents)
        return [self._assemble(c, f, ids) for c, f in zip(conversations, frames, strict=True)]

    def prompt(self, messages: Sequence[Message]) -> np.ndarray:
        """int32 ids of `messages` followed by the header of an assistant turn, ready to be continued."""
        document = self.render([Conversation("prompt", "prompt", tuple(messages), "")])[0]
        format_ = self._plain if self._chatml else self._format
        return np.concatenate([document.tokens, self._markup(format_.generation_prompt())])

    def continuation(self, messages: Sequence[Message], known: int) -> np.ndarray:
        """int32 ids that lead from a sampled reply to the next one in the same dialogue.

        The first `known` messages are in the context already, the last of them the sampled reply, whose ids ended with
        the end-of-turn token. Returned are the rest of that turn's frame (in ChatML its newline), the messages after
        it, and the header of the next assistant turn; with `known` 0 that is `prompt(messages)`. Raises ValueError for
        a template whose generation prompt is not the header that it writes for an assistant turn there.
        """
        assert known == 0 or messages[known - 1].role == "assistant"
        dialogue = Conversation("dialogue", "dialogue", (*messages, Message("assistant", "placeholder")), "")
        frames = self._frames(dialogue)
        format_ = self._plain if self._chatml else self._format
        if frames[-1].before != format_.generation_prompt():
            raise ValueError(
                f"the chat template asks for a reply with {format_.generation_prompt()!r}, but writes "
                f"{frames[-1].before!r} before one; set data.chat_format=chatml, or use a template that only appends"
            )
        contents = self.tokenizer.encode_batch(
            [f.content(m) for f, m in zip(frames[known:-1], messages[known:], strict=True)]
        )
        pieces = [self._markup(frames[known - 1].after)[1:]] if known else []
        for frame, content in zip(frames[known:-1], contents, strict=True):
            pieces += (self._markup(frame.before), content, self._markup(frame.after))
        return np.concatenate([*pieces, self._markup(frames[-1].before)])

    def _frames(self, conversation: Conversation) -> list[Frame]:
        plain = all(message.role != "tool" for message in conversation.messages)
        format_ = self._plain if self._chatml and plain else self._format
        frames = format_.frames(conversation)
        for message, frame in zip(conversation.messages, frames, strict=True):
            trained = message.role == "assistant"
            if (frame, trained) not in self._checked:
                self._check(frame, trained, f"document {conversation.id!r}")
        return frames

    def _check(self, frame: Frame, trained: bool, where: str) -> None:
        """The borders of a frame must be token borders, and an assistant turn must end in a special token."""
        before, after = self._markup(frame.before), self._markup(frame.after)
        if trained and (len(after) == 0 or int(after[0]) not in self.tokenizer.specials.values()):
            raise ValueError(
                f"{where}: the chat template ends an assistant turn with {frame.after!r}, which does not begin with "
                "a special token, so a model could not learn to stop; use a template with an end-of-turn token"
            )
        for probe, content in zip(PROBES, self.tokenizer.encode_batch(PROBES), strict=True):
            whole = self.tokenizer.encode_markup(frame.before + probe + frame.after)
            if not np.array_equal(whole, np.concatenate([before, content, after])):
                raise ValueError(
                    f"{where}: the tokenizer merges {probe!r} with the chat markup around it, so turns have no token "
                    "borders; use a tokenizer with special tokens at the ends of turns"
                )
        self._checked.add((frame, trained))

    def _assemble(self, conversation: Conversation, frames: list[Frame], ids) -> RenderedDocument:
        pieces: list[np.ndarray] = []
        spans: list[tuple[int, int]] = []
        starts: list[int] = []
        length = 0
        for message, frame in zip(conversation.messages, frames, strict=True):
            before, content, after = self._markup(frame.before), next(ids), self._markup(frame.after)
            pieces += (before, content, after)
            starts.append(length)
            if message.role == "assistant":
                begin = length + len(before)
                spans.append((begin, begin + len(content) + 1))  # the 1 is the end-of-turn token
            length += len(before) + len(content) + len(after)
        return RenderedDocument(
            id=conversation.id,
            source=conversation.source,
            tokens=np.concatenate(pieces),
            loss_spans=np.array(spans, np.int32).reshape(-1, 2),
            turn_starts=np.array(starts, np.int32),
        )
