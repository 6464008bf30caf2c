"""From a reply to the answer it states: thinking stripped, the answer tag, letters of options.

Strict on purpose. A lenient parser credits a model for letters it never meant ("The answer about this is D" holds an
A), so format failures would earn what chance earns. Of a model under test, a reply without a readable answer is a
wrong answer: it is scored 0 and counted under `parsed`. Only what is not the model's doing is Missing.
"""

import re

THINKING = re.compile(r"<(think|thinking)>.*?(?:</\1>|\Z)", re.IGNORECASE | re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
LETTER = re.compile(r"\(?\s*([A-Za-z])\s*\)?\s*[.:]?")


def strip_thinking(text: str) -> str:
    """`text` without its reasoning. A block that is never closed reaches to the end: what stands in it is unfinished
    reasoning, not an answer."""
    return THINKING.sub("", text).strip()


def tagged_answer(text: str) -> str | None:
    """What stands between <answer> and </answer>, trimmed; None where there is no tag, or two that differ."""
    found = {content.strip() for content in ANSWER.findall(strip_thinking(text))}
    return found.pop() if len(found) == 1 else None


def chosen_letter(text: str, options: int) -> str | None:
    """The option, as a capital from A on, that a reply names in its answer tag: "B", "b", "(B)", "B." or "B:".

    None for anything else, also for a letter past the last option.
    """
    answer = tagged_answer(text)
    match = LETTER.fullmatch(answer) if answer is not None else None
    letter = match[1].upper() if match else None
    return letter if letter is not None and ord(letter) - ord("A") < options else None


def lettered(options: list[str] | tuple[str, ...]) -> str:
    """Options one a line, "A. first", as prompts show them."""
    return "\n".join(f"{chr(ord('A') + index)}. {option}" for index, option in enumerate(options))
