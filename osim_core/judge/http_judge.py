"""The judge behind an OpenAI-compatible server: a hosted model, or vLLM, SGLang or llama.cpp on other machines.

    judge = HttpJudge("held out", base_url, model, rubrics, Patience(deadline_s=60), cache=AnswerCache(path))
    verdicts = judge.score(items)

Two ways to ask. "json" works anywhere: one request for all dimensions, held to a JSON schema, whose answers are words
without probabilities. "logprobs" needs a server that tells the likeliest first tokens: one request and one token a
dimension, and the score is the expectation over the labels, as for the other judges.

What cannot be read is asked again, and in the end Missing with the reason; it never becomes a score.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from osim_core.judge import prompt
from osim_core.judge.cache import AnswerCache
from osim_core.judge.calibrate import Calibration
from osim_core.judge.identity import rubric_versions
from osim_core.judge.prompt import Call, calls
from osim_core.judge.reading import LOW_MASS, Reading, given, read, verdict
from osim_core.judge.rubric import Dimension, JudgeItem, Rubric, Verdict, check_item
from osim_core.judge.transport import Patience, Transport
from osim_core.missing import Missing

UNDECODABLE, MALFORMED, EMPTY = "undecodable answer", "malformed answer", "empty answer"
CUT, OFF_LABEL = "cut answer", "off-label answer"
TOP_LOGPROBS = 20  # the most that the interface offers
LEAST_LOGPROB = -100.0  # servers write impossible as -inf, -9999 or otherwise


class HttpJudge:
    """Scores through `{base_url}/chat/completions`.

    answers       "json" or "logprobs"
    min_mass      with "logprobs": a dimension whose labels are together less probable is Missing
    calibrations  rubric -> dimension -> Calibration; with "logprobs" only
    cache         keeps the answers on disk

    `transport.traffic` counts requests, failures and tokens. Raises ValueError for an address that is not http(s), and
    with "logprobs" for a rubric with a label that begins another one, which the first token cannot tell apart.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        model: str,
        rubrics: Iterable[Rubric],
        patience: Patience | None = None,
        *,
        answers: Literal["json", "logprobs"] = "json",
        min_mass: float = 0.2,
        calibrations: Mapping[str, Mapping[str, Calibration]] | None = None,
        key_variable: str = "OPENAI_API_KEY",
        cache: AnswerCache | None = None,
    ) -> None:
        self.name, self.answers, self.min_mass = name, answers, min_mass
        self.rubrics = {rubric.id: rubric for rubric in rubrics}
        self.calibrations = calibrations or {}
        patience = patience or Patience()
        self.transport = Transport(f"judge {name}", base_url, model, patience, key_variable=key_variable, cache=cache)
        versions = rubric_versions(self.rubrics.values())
        self.identity = f"http {model} {answers} prompt {prompt.VERSION} rubrics {versions} mass {min_mass}"
        if answers == "logprobs":
            for rubric in self.rubrics.values():
                _check_first_tokens(rubric)

    def score(self, items: Sequence[JudgeItem]) -> list[Verdict]:
        """One verdict per item, in order, within the deadline. Raises ValueError where the server refuses every
        request: a wrong address, model or key."""
        rubrics = [check_item(item, self.rubrics) for item in items]
        asked = [(i, call) for i, rubric in enumerate(rubrics) for call in calls(rubric, items[i])]
        ask = self._as_json if self.answers == "json" else self._as_logprobs
        orders: list[list[Mapping[str, Reading | Missing]]] = [[] for _ in items]
        for (i, _), readings in zip(asked, ask([(rubrics[i], call) for i, call in asked]), strict=True):
            orders[i].append(readings)
        return [verdict(rubric, own) for rubric, own in zip(rubrics, orders, strict=True)]

    def _as_json(self, asked: Sequence[tuple[Rubric, Call]]) -> list[dict[str, Reading | Missing]]:
        """Dimension -> reading of every call; one request each."""
        answers = self.transport.ask([json_body(rubric, call) for rubric, call in asked], read_object)
        return [_words(rubric, answer) for (rubric, _), answer in zip(asked, answers, strict=True)]

    def _as_logprobs(self, asked: Sequence[tuple[Rubric, Call]]) -> list[dict[str, Reading | Missing]]:
        """Dimension -> reading of every call; one request per call and dimension."""
        questions = [(rubric, d, call) for rubric, call in asked for d in rubric.dimensions]
        bodies = [logprob_body(rubric, dimension, call) for rubric, dimension, call in questions]
        readings = iter(
            answer if isinstance(answer, Missing) else self._expectation(rubric, dimension, answer)
            for (rubric, dimension, _), answer in zip(questions, self.transport.ask(bodies, read_top), strict=True)
        )
        return [{dimension.name: next(readings) for dimension in rubric.dimensions} for rubric, _ in asked]

    def _expectation(self, rubric: Rubric, dimension: Dimension, top: Mapping[str, float]) -> Reading | Missing:
        """The reading of the likeliest first tokens. A label that is not among them cannot be likelier than the last
        one, and is taken to be as likely: with nothing, place 21 would be the same as impossible."""
        calibration = self.calibrations.get(rubric.id, {}).get(dimension.name, Calibration())
        log_masses = label_masses(dimension, top)
        seen = math.fsum(math.exp(logprob) for logprob in log_masses if logprob is not None)
        if seen < self.min_mass:
            return Missing(LOW_MASS, f"{dimension.name}: label mass {seen:.3g} is below {self.min_mass}")
        bound = min(top.values())
        return read(dimension, [bound if mass is None else mass for mass in log_masses], calibration, 0.0)


def json_body(rubric: Rubric, call: Call) -> dict[str, Any]:
    """The request for all dimensions of a call at once."""
    task, context, reply = prompt.texts(rubric, call)
    questions = "\n\n".join(f"{d.name}: {prompt.describe(d)}\nOne of: {', '.join(d.labels)}" for d in rubric.dimensions)
    schema = {
        "type": "object",
        "properties": {d.name: {"type": "string", "enum": list(d.labels)} for d in rubric.dimensions},
        "required": [d.name for d in rubric.dimensions],
        "additionalProperties": False,
    }
    return {
        "messages": [
            {"role": "system", "content": task},
            {"role": "user", "content": f"{context}{reply}# Questions\n{questions}\n\nAnswer as a JSON object."},
        ],
        "max_tokens": 32 + 24 * len(rubric.dimensions),
        "temperature": 0.0,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "schema": schema, "strict": True},
        },
    }


def logprob_body(rubric: Rubric, dimension: Dimension, call: Call) -> dict[str, Any]:
    """The request for the likeliest first tokens of the answer about one dimension."""
    task, context, reply = prompt.texts(rubric, call)
    return {
        "messages": [
            {"role": "system", "content": task},
            {"role": "user", "content": f"{context}{reply}{prompt.question(dimension)}"},
        ],
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": True,
        "top_logprobs": TOP_LOGPROBS,
    }


def read_object(raw: bytes) -> dict[str, Any] | Missing:
    """The JSON object that a chat completion answers with."""
    choice = _choice(raw)
    if isinstance(choice, Missing):
        return choice
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str) or not content.strip():
        return Missing(EMPTY, "the answer has no text")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        reason = CUT if choice.get("finish_reason") == "length" else MALFORMED
        return Missing(reason, f"not JSON: {content[:80]!r}")
    return found if isinstance(found, dict) else Missing(MALFORMED, f"not a JSON object: {content[:80]!r}")


def read_top(raw: bytes) -> dict[str, float] | Missing:
    """Token text -> log-probability of the likeliest first tokens of a chat completion."""
    choice = _choice(raw)
    if isinstance(choice, Missing):
        return choice
    try:
        top = choice["logprobs"]["content"][0]["top_logprobs"]
        found: dict[str, float] = {}
        for entry in top:
            token, logprob = entry["token"], max(float(entry["logprob"]), LEAST_LOGPROB)
            if not isinstance(token, str) or not logprob <= 1e-6:
                return Missing(MALFORMED, f"not a log-probability: {entry!r:.80}")
            found[token] = math.log(math.exp(found[token]) + math.exp(logprob)) if token in found else logprob
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        return Missing(MALFORMED, f"no log-probabilities in the answer ({error!r:.80})")
    return found or Missing(EMPTY, "no log-probabilities in the answer")


def label_masses(dimension: Dimension, top: Mapping[str, float]) -> list[float | None]:
    """Log-probability of each label, from the likeliest first tokens; None for one that none of them begins.

    A token counts for the label that it is or begins, whatever its case and the spaces before it, if it is the only
    such label.
    """
    seen: list[list[float]] = [[] for _ in dimension.labels]
    for token, logprob in top.items():
        word = token.strip().casefold()
        fits = [i for i, label in enumerate(dimension.labels) if word and label.casefold().startswith(word)]
        if len(fits) == 1:
            seen[fits[0]].append(logprob)
    return [math.log(math.fsum(map(math.exp, own))) if own else None for own in seen]


def _words(rubric: Rubric, answer: Mapping[str, Any] | Missing) -> dict[str, Reading | Missing]:
    if isinstance(answer, Missing):
        return {dimension.name: answer for dimension in rubric.dimensions}
    found: dict[str, Reading | Missing] = {}
    for dimension in rubric.dimensions:
        word = str(answer.get(dimension.name)).strip().casefold()  # 7 is as good as "7" where no schema is enforced
        label = next((label for label in dimension.labels if label.casefold() == word), None)
        if label is None:
            found[dimension.name] = Missing(OFF_LABEL, f"{dimension.name}: {word[:80]!r}")
        else:
            found[dimension.name] = given(dimension, label)
    return found


def _choice(raw: bytes) -> dict[str, Any] | Missing:
    """The first choice of a chat completion."""
    try:
        choice = json.loads(raw.decode("utf-8"))["choices"][0]
    except UnicodeDecodeError as error:
        return Missing(UNDECODABLE, f"not UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return Missing(MALFORMED if raw.strip() else EMPTY, f"not a chat completion: {raw[:80]!r}")
    return choice if isinstance(choice, dict) else Missing(MALFORMED, "not a chat completion")


def _check_first_tokens(rubric: Rubric) -> None:
    for dimension in rubric.dimensions:
        words = [label.casefold() for label in dimension.labels]
        if any(a != b and b.startswith(a) for a in words for b in words):
            raise ValueError(
                f"rubric {rubric.id!r}, dimension {dimension.name!r}: one of its labels begins another one, so the "
                'first token does not tell them apart; use answers="json", or other labels'
            )
