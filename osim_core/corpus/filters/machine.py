"""Signs that the simulated person's words were written by a machine.

A model of people should not learn from text that a language model wrote in their place: pasted answers, prompts with
their markup, scripts that post the same line. These are patterns with few false alarms, not a detector: fluent
machine text without a tell passes, and a person who quotes an AI is flagged. So the default is to label.
"""

import re
from collections.abc import Sequence

from osim_core.corpus.conversation import Conversation
from osim_core.corpus.filters import Outcome

SELF = re.compile(  # says that it is a machine
    r"\bas an? (?:ai|artificial intelligence|large language model|language model|ai language model)\b"
    r"|\bi(?:'m| am) (?:just |only )?an? (?:ai|language model|virtual assistant)\b"
    r"|\bmy (?:knowledge|training) (?:cut-?off|data)\b",
    re.IGNORECASE,
)
REFUSAL = re.compile(
    r"^(?:i(?:'|\u2019)m sorry,? but|i apologi[sz]e,? but|unfortunately,) i "
    r"(?:can(?:no|'|\u2019)?t|am unable to)\b"
    r"|\bi (?:cannot|can't|can\u2019t) (?:assist|help) with (?:that|this) request\b",
    re.IGNORECASE | re.MULTILINE,
)
TEMPLATE = re.compile(  # markup of chat templates and prompt collections
    r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|user|assistant|system)\|>"
    r"|\[/?INST\]|<</?SYS>>|^### (?:Instruction|Response|Human|Assistant):|<start_of_turn>",
    re.MULTILINE,
)
HEADING = re.compile(r"^#{1,4} \S", re.MULTILINE)
BOLD_ITEM = re.compile(r"^\s*(?:[-*]|\d+\.) \*\*[^*\n]+\*\*", re.MULTILINE)
KINDS = ("self", "refusal", "template", "structure", "repeats")
REPEATED_MESSAGES = 5  # equal messages of more than SHORT characters
SHORT = 40


class MachineWritten:
    """Labels machine=<kinds joined by +> or "no"; drops where one of `drop` is found. Kinds: "self" (calls itself an
    AI), "refusal" (refuses as assistants do), "template" (chat markup), "structure" (headings and bold lists) and
    "repeats" (one long message five times). Only the trained side is read."""

    name = "machine"

    def __init__(self, drop: Sequence[str] = ()) -> None:
        unknown = [kind for kind in drop if kind not in KINDS]
        if unknown:
            raise ValueError(f"machine: no kind {unknown[0]!r}; there are {', '.join(KINDS)}")
        self.drop = frozenset(drop)

    def __call__(self, conversation: Conversation) -> Outcome:
        found = flags([m.content for m in conversation.messages if m.role == "assistant"])
        bad = [kind for kind in found if kind in self.drop]
        return Outcome(dropped=f"machine: {bad[0]}" if bad else "", labels={"machine": "+".join(found) or "no"})


def flags(messages: Sequence[str]) -> list[str]:
    """The kinds found in one person's messages, in the order of KINDS."""
    text = "\n".join(messages)
    long = [message for message in messages if len(message) > SHORT]
    found = {
        "self": SELF.search(text),
        "refusal": REFUSAL.search(text),
        "template": TEMPLATE.search(text),
        "structure": len(HEADING.findall(text)) + len(BOLD_ITEM.findall(text)) >= 3,
        "repeats": len(long) - len(set(long)) >= REPEATED_MESSAGES - 1,
    }
    return [kind for kind in KINDS if found[kind]]
