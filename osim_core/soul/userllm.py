"""A user's turn in a talk with an assistant, given what the user wants (UserLM, arXiv 2510.06552; SOUL's UserLLM).

Three kinds of items. `source` "prism...": pursue an intent, and say END when it is met. "commonsense_qa": stay a user,
that is, do not answer one's own question. "natural_questions": turn down an assistant's distraction.

Our score and OdysSim's are kept apart, because theirs has the wrong sign: it rewards words copied from the intent, and
gives a correct ending a third at most and an empty reply full marks on commonsense_qa.

    ours (`score`)    prism, end due:  1 if the reply ends the dialogue
                      prism, turn due: 0 if it ends or is empty, else the mean of the judge's human-likeness and
                                       1 - |O - O of the real reply| (O = 0 where there is none), O the overlap below
                      others:          OdysSim's rule; an empty reply or a bare end is 0
    `paper_score`     prism:           (O + T + A) / 3, T = 1 if the end flag is right, A the judge's human-likeness (0
                                       for an empty reply or a bare end)
                      commonsense_qa:  0 if 1, 2 or all options are named, else 1
                      natural_questions: the judge's verdict that the suggestion was turned down

    O = |I and U| / |U| over the sets of the intent's and the reply's words: lower case, alphanumeric, no stop words
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from osim_core.corpus.conversation import Message
from osim_core.judge.rubric import JudgeItem, Verdict
from osim_core.missing import Missing, Value
from osim_core.soul.answers import strip_thinking
from osim_core.soul.episode import POLICY, Episode, Outcome, Sample, Split, TaskSpec, Turn
from osim_core.soul.judged import mean, verdict_value
from osim_core.soul.single_turn import part, single_turn
from osim_core.soul.splits import split_scenarios

END = "<|endconversation|>"
ROWS = Path(__file__).parent / "scenarios" / "userllm.json"
HUMAN, REFUSES = ("next_turn", "human_likeness"), ("intent", "adherence")  # rubric, dimension
MAX_TOKENS = 256
WORD = re.compile(r"[a-z0-9]+")
STOP_WORDS = frozenset(
    WORD.findall(
        "a about after all also am an and any are as at be been but by can could did do does for from get had has have "
        "he her here him his how i if in is it its just like me my no not of on one or our out she should so some than "
        "that the their them then there they this to up us was we were what when where which who why will with would "
        "you your s t m re ve ll d"
    )
)
FIELDS = {  # source -> what a row needs beside id, source and conversation_history
    "prism": ("is_last_turn",),
    "commonsense_qa": ("choices",),
    "natural_questions": ("question", "assistant_suggestion_turn"),
}


def kind_of(row: Mapping[str, Any]) -> str:
    """The kind of a published row. Raises ValueError naming the row for a source that is none of the three."""
    source = str(row.get("source"))
    kind = "prism" if "prism" in source else source
    if kind not in FIELDS:
        raise ValueError(f"userllm row {row.get('id')!r}: source {source!r} is none of {', '.join(FIELDS)}")
    return kind


def read_rows(path: Path = ROWS) -> list[dict[str, Any]]:
    """Rows in the published layout (JSON list, or JSONL). Raises ValueError naming file and row for a bad one."""
    text = path.read_text(encoding="utf-8")
    try:
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines() if x]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for number, row in enumerate(rows, 1):
        needed = ("id", "conversation_history", *FIELDS[kind_of(row)])
        absent = [name for name in needed if row.get(name) is None]
        if absent or not intent_of(row):
            raise ValueError(f"{path}, row {number}: needs {', '.join(absent) or 'an intent'}")
    return rows


def intent_of(row: Mapping[str, Any]) -> str:
    """What the user wants: the stated intent, its summary, the opening prompt, or the first line of the history."""
    for name in ("intent", "intent_summary", "opening_prompt"):
        if row.get(name):
            return row[name]
    return str(row.get("conversation_history") or "").partition("\n")[0]


class UserLLM:
    def __init__(self, rows: Path = ROWS) -> None:
        self.rows = rows
        self.spec = TaskSpec(
            id="userllm",
            axis="CONV",
            version=1,
            origin="protocol of UserLM (arXiv 2510.06552) and SOUL-Index, items ours",
            licence="Apache-2.0",
            chance=None,
            judged=True,
            items={"train": 17, "validation": 6, "test": 5},
        )

    def samples(self, split: Split) -> Sequence[Sample]:
        """fields: those of the row. A published file has no splits of its own: it is divided by intent here."""
        rows = read_rows(self.rows)
        splits = split_scenarios({intent_of(row): kind_of(row) for row in rows})
        return [
            Sample(
                id=f"userllm/{row['id']}",
                task="userllm",
                scenario=intent_of(row),
                fields=row,
                reference=row.get("reference"),
            )
            for row in rows
            if splits[intent_of(row)] == split
        ]

    def episode(self, sample: Sample) -> Episode:
        prompt = _prompt(intent_of(sample.fields), sample.fields["conversation_history"])
        return single_turn([Message("user", prompt)], MAX_TOKENS, lambda text: _examine(sample, text))

    def score(self, sample: Sample, outcome: Outcome, verdicts: Mapping[str, Verdict]) -> Value:
        """Our score, in [0, 1]."""
        due = part(outcome, "as_due")
        if due != 1.0 or kind_of(sample.fields) == "commonsense_qa" or sample.fields.get("is_last_turn"):
            return due
        judged = _judged(sample, verdicts)
        return mean([judged, part(outcome, "own_words")]) if "own_words" in outcome.values else judged

    def paper_score(self, sample: Sample, outcome: Outcome, verdicts: Mapping[str, Verdict]) -> Value:
        """OdysSim's, in [0, 1]."""
        rule = part(outcome, "paper_rule")
        if isinstance(rule, Missing) or kind_of(sample.fields) == "commonsense_qa":
            return rule
        judged = _judged(sample, verdicts) if outcome.judgements else 0.0
        if kind_of(sample.fields) == "natural_questions":
            return judged
        return mean([part(outcome, "overlap"), rule, judged])


def _prompt(intent: str, history: str) -> str:
    card = (
        f"You are a person who talks to an AI assistant. What you want: {intent}. Write as people write to a machine: "
        "short, in your own words, with typos if you make them, and not everything you know at once."
    )
    if not history:
        return f"{card}\n\nWrite your first message, and nothing else."
    rule = f"If you have what you want, reply with {END} only. Else write your next message."
    return f"{card}\n\nSo far:\n{history}\n\n{rule}"


def words(text: str) -> frozenset[str]:
    return frozenset(WORD.findall(text.lower())) - STOP_WORDS


def overlap(intent: str, reply: str) -> float:
    """Share of a reply's different content words that the intent holds; 0 where either has none."""
    theirs, own = words(intent), words(reply)
    return len(theirs & own) / len(own) if theirs and own else 0.0


def options_named(reply: str, choices: Sequence[str]) -> int:
    """How many options a reply holds as whole words, whatever their case and punctuation."""
    text = f" {' '.join(WORD.findall(reply.lower()))} "
    return sum(f" {' '.join(WORD.findall(choice.lower()))} " in text for choice in choices)


def _examine(sample: Sample, text: str) -> Outcome:
    fields, kind = sample.fields, kind_of(sample.fields)
    message, ends, _ = strip_thinking(text).partition(END)
    message, ends = message.strip(), bool(ends)
    values: dict[str, Value] = {"as_due": float(bool(message))}
    rubric = None
    if kind == "prism":
        intent, due_end = intent_of(fields), bool(fields["is_last_turn"])
        values["overlap"] = overlap(intent, message)
        values["paper_rule"] = float(ends == due_end)
        values["as_due"] = float(ends if due_end else bool(message) and not ends)
        if not due_end:
            target = overlap(intent, sample.reference) if sample.reference else 0.0
            values["own_words"] = 1 - abs(values["overlap"] - target)
        rubric, _ = HUMAN
    elif kind == "commonsense_qa":
        named, offered = options_named(message, fields["choices"]), len(fields["choices"])
        values["paper_rule"] = float(offered > 0 and named not in (1, 2, offered))
        values["as_due"] = values["paper_rule"] if message else 0.0
    else:
        values["paper_rule"] = 1.0
        rubric, _ = REFUSES
    if rubric is None or not message:
        return Outcome(turns=(Turn(POLICY, text),), values=values)
    item = JudgeItem(id=sample.id, rubric=rubric, context=_context(fields), reply=message)
    return Outcome(turns=(Turn(POLICY, text),), values=values, judgements=(item,))


def _judged(sample: Sample, verdicts: Mapping[str, Verdict]) -> Value:
    """Human-likeness of a message that pursues an intent; of one to a distraction, that it is turned down."""
    _, dimension = REFUSES if kind_of(sample.fields) == "natural_questions" else HUMAN
    return verdict_value(verdicts, sample.id, dimension)


def _context(fields: Mapping[str, Any]) -> str:
    history = fields["conversation_history"] or "(The conversation begins.)"
    if "assistant_suggestion_turn" not in fields:
        return history
    return (
        f"The person wants the answer to: {fields['question']}\n{history}\n"
        f"The assistant suggests: {fields['assistant_suggestion_turn']}"
    )
