"""Personal data that has a form: replaced by its kind in brackets.

    [email] [phone] [card] [iban] [ssn] [ip] [id]

Card numbers, IBANs and SSNs must pass their checks (Luhn; ISO 7064 mod 97-10; the number ranges of the SSN), so prices
and years stay. Names, addresses and user names have no form and are not found: this is no anonymisation.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from osim_core.corpus.conversation import Conversation, Message
from osim_core.corpus.filters import KEEP, Outcome

EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
US_PHONE = re.compile(r"(?<![\d.])(?:\+?\d{1,2}[-. ]?)?(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}(?!\d)")
WORLD_PHONE = re.compile(r"(?<![\w.+])(?:\+|00)[1-9](?:[ .()/-]{0,2}\d){7,14}(?!\d)")
CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?!\d)")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b")
SSN = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
IP = re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.])")
ID = re.compile(r"(?<![\w.,#-])\d{9,20}(?![\w.,-]*\d)")  # of accounts, orders, students; nine digits and more
DIGITS = re.compile(r"\d")
FOUR_DIGITS = re.compile(r"\d{4}")


def luhn(text: str) -> bool:
    """Whether the digits of a text pass the check of card numbers (ISO/IEC 7812)."""
    digits = [int(digit) for digit in DIGITS.findall(text)][::-1]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[1::2]]
    return len(set(digits)) > 1 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def iban_check(text: str) -> bool:
    """Whether a text passes the check of IBANs (ISO 7064 mod 97-10)."""
    plain = text.replace(" ", "")
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


# In this order: a card is not to be taken for a phone, nor a phone for an id.
KINDS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("iban", IBAN, iban_check),
    ("card", CARD, luhn),
    ("ssn", SSN, bool),
    ("phone", WORLD_PHONE, bool),
    ("phone", US_PHONE, bool),
    ("ip", IP, lambda text: text not in ("0.0.0.0", "127.0.0.1", "255.255.255.255")),
    ("id", ID, bool),
)


class Scrub:
    """Replaces personal data in every message, the system message too; never drops."""

    name = "personal"

    def __call__(self, conversation: Conversation) -> Outcome:
        edits: Counter[str] = Counter()
        messages = tuple(Message(m.role, scrub(m.content, edits)) for m in conversation.messages)
        if not edits:
            return KEEP
        return Outcome(edited=replace(conversation, messages=messages), edits=edits)


def scrub(text: str, edits: Counter[str]) -> str:
    """`text` with personal data replaced; adds to `edits` how many of each kind."""
    if "@" in text:
        text, count = EMAIL.subn("[email]", text)
        if count:
            edits["email"] += count
    if not DIGITS.search(text):
        return text

    for kind, pattern, check in KINDS:
        # bound now, as the loop goes on
        def put(match: re.Match[str], kind: str = kind, check: Callable[[str], bool] = check) -> str:
            if not check(match[0]):
                return match[0]
            edits[kind] += 1
            return f"[{kind}]"

        text = pattern.sub(put, text)
    return text
