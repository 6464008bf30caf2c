"""Rubrics as data, the items that a judge is asked about, and what it answers.

    rubric = load_rubric("next_turn")                      # osim_core/judge/rubrics/next_turn.json, or a path
    item = JudgeItem(id="17/3", rubric=rubric.id, context="A: hi ...", reply="hey, you ok?")
    verdict = judge.score([item])[0]
    verdict.score                                          # in [0, 1], or Missing

A rubric file is JSON with the fields of `Rubric`; a dimension has either "scale", a name of SCALES, or "labels" and
"values". Every judge answers every item: what it could not judge is Missing, with the reason.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from osim_core.missing import Missing, Value

FOLDER = Path(__file__).parent / "rubrics"
SCALES: dict[str, dict[str, float]] = {  # answer word -> its value
    "1-5": {str(n): float(n) for n in range(1, 6)},
    "1-10": {str(n): float(n) for n in range(1, 11)},
    "yes-no": {"yes": 1.0, "no": 0.0},
    "low-medium-high": {"low": 0.0, "medium": 0.5, "high": 1.0},
    "A-D": {"A": 1.0, "B": 2 / 3, "C": 1 / 3, "D": 0.0},
}
LOGPROB = "logp/"  # and a label: the name of its log-probability in a verdict's details
PAIR = ("A", "B")  # how the two replies of a pairwise rubric are called, and its answer words


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One question of a rubric.

    name      names its value in verdicts and reports
    question  what the judge is asked, one sentence or two
    labels    the words it may answer, and per label
    values    a number, and
    anchors   what the answer stands for; "" where the word says it
    worst, best  ends of the scale that becomes [0, 1]; worst may lie above best. None: least and greatest value
    weight    in the item's score, >= 0

    Raises ValueError for labels that are empty, repeated or without a value, and for a scale without length.
    """

    name: str
    question: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    anchors: tuple[str, ...]
    worst: float | None = None
    best: float | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        where = f"dimension {self.name!r}"
        if not self.name or not self.question.strip():
            raise ValueError(f"{where}: needs a name and a question")
        words = [label.casefold() for label in self.labels]
        if len(words) < 2 or not all(words) or len(set(words)) < len(words) or words != [w.strip() for w in words]:
            raise ValueError(f"{where}: needs two or more different answer words without spaces around, got {words}")
        if not len(self.labels) == len(self.values) == len(self.anchors):
            raise ValueError(f'{where}: every label needs a value, and an anchor ("" where the word says it)')
        if self.scale[0] == self.scale[1] or self.weight < 0:
            raise ValueError(f"{where}: the ends of its scale must differ and its weight be at least 0")

    @property
    def scale(self) -> tuple[float, float]:
        """(worst, best)."""
        return (
            min(self.values) if self.worst is None else self.worst,
            max(self.values) if self.best is None else self.best,
        )

    def normalise(self, score: float) -> float:
        """A score in the units of `values` as a number in [0, 1]."""
        worst, best = self.scale
        return (score - worst) / (best - worst)


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """What a judge is told and asked.

    id        its name; items refer to it
    version   raised with every change: scores of two versions do not compare
    task      what the judge is to do, the start of its prompt
    context_title, reply_title   headings of the two parts of an item
    pairwise  the judge sees two replies, called A and B, in both orders, and every dimension asks which one; a value is
              then the probability that it names `reply` rather than `other`

    Raises ValueError for no dimensions, for names twice, and for a pairwise one whose labels are not A and B.
    """

    id: str
    version: int
    task: str
    dimensions: tuple[Dimension, ...]
    context_title: str = "Context"
    reply_title: str = "Reply"
    pairwise: bool = False

    def __post_init__(self) -> None:
        names = [dimension.name for dimension in self.dimensions]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"rubric {self.id!r}: needs dimensions of different names, got {names}")
        if sum(dimension.weight for dimension in self.dimensions) <= 0:
            raise ValueError(f"rubric {self.id!r}: some dimension needs a weight above 0")
        if self.pairwise and any(dimension.labels != PAIR for dimension in self.dimensions):
            raise ValueError(f"rubric {self.id!r}: a pairwise dimension has the labels {PAIR}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeItem:
    """One thing to be judged.

    id       unique in a call; verdicts come in the order of the items
    rubric   id of the rubric
    context  what was there before, as text: scenario, transcript, the real human's reply, ...
    reply    what is judged
    other    for a pairwise rubric the reply it is held against, else None
    """

    id: str
    rubric: str
    context: str
    reply: str
    other: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a judge said about an item.

    values   dimension -> Value in [0, 1]
    score    mean of the present values by the dimensions' weights, in [0, 1]; Missing if none of them is present
    details  dimension -> figures: `score` in the units of the rubric, and where the judge gives label probabilities
             `entropy` (nats), `margin`, `mass` and `logp/<label>`; for a pair `order_bias`, in log-odds for the first
             place
    """

    values: Mapping[str, Value]
    score: Value
    details: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class Judge(Protocol):
    """name      in reports: "train", "held out", a model's name
    identity  everything that decides its scores: backend, model, rubrics and calibration, hex or text
    """

    name: str
    identity: str

    def score(self, items: Sequence[JudgeItem]) -> list[Verdict]:
        """One verdict per item, in order. Raises ValueError for an item that its rubric cannot hold."""
        ...


def compose(rubric: Rubric, values: Mapping[str, Value]) -> Value:
    """The score of an item from its dimensions' values, over those that are present; else the first one's reason."""
    present = [(d.weight, values[d.name]) for d in rubric.dimensions if not isinstance(values[d.name], Missing)]
    total = sum(weight for weight, _ in present)
    if total > 0:
        return sum(weight * value for weight, value in present) / total
    return next(value for value in values.values() if isinstance(value, Missing))


def missing_verdict(rubric: Rubric, missing: Missing) -> Verdict:
    """A verdict of which nothing is known."""
    return Verdict(values={dimension.name: missing for dimension in rubric.dimensions}, score=missing)


def check_item(item: JudgeItem, rubrics: Mapping[str, Rubric]) -> Rubric:
    """The rubric of an item. Raises ValueError if the judge has none of that id, or it does not fit."""
    if item.rubric not in rubrics:
        raise ValueError(f"judge item {item.id!r}: no rubric {item.rubric!r}; this judge has {sorted(rubrics)}")
    rubric = rubrics[item.rubric]
    if rubric.pairwise != (item.other is not None):
        need = "two replies" if rubric.pairwise else "one reply"
        raise ValueError(f"judge item {item.id!r}: rubric {rubric.id!r} compares {need}; set `other` accordingly")
    return rubric


def load_rubric(name: str | Path) -> Rubric:
    """A rubric of ours by name, or of a JSON file by path. Raises ValueError naming the file and the key."""
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.json")))
        raise ValueError(f"rubric {str(name)!r}: neither a file nor one of {known}")
    try:
        raw = json.loads(path.read_bytes())
        if not isinstance(raw, dict) or not isinstance(raw.get("dimensions"), list):
            raise ValueError("needs an object with a list of dimensions")
        dimensions = tuple(_dimension(each) for each in raw.pop("dimensions"))
        return _build(Rubric, {**raw, "dimensions": dimensions})
    except (ValueError, TypeError) as error:  # a wrong type shows in the checks of the dataclasses
        raise ValueError(f"rubric {path}: {error}") from error


def _dimension(raw: dict[str, Any]) -> Dimension:
    if not isinstance(raw, dict):
        raise ValueError(f"a dimension is an object, got {raw!r}")
    raw = dict(raw)
    if (name := raw.pop("scale", None)) is not None:
        if name not in SCALES or "labels" in raw or "values" in raw:
            raise ValueError(f"scale {name!r}: one of {', '.join(SCALES)}, instead of labels and values")
        raw["labels"], raw["values"] = SCALES[name].keys(), SCALES[name].values()
    anchors = raw.get("anchors", {})
    labels = tuple(raw.get("labels", ()))
    if unknown := set(anchors) - set(labels):
        raise ValueError(f"dimension {raw.get('name')!r}: anchors for {sorted(unknown)}, which are no labels")
    raw["anchors"] = tuple(anchors.get(label, "") for label in labels)
    return _build(Dimension, {**raw, "labels": labels, "values": tuple(raw.get("values", ()))})


def _build(kind: type, values: dict[str, Any]) -> Any:
    if unknown := set(values) - {f.name for f in fields(kind)}:
        raise ValueError(f"unknown key {', '.join(sorted(unknown))} of a {kind.__name__.lower()}")
    return kind(**values)
