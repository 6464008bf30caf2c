"""What tasks read of a judge's verdicts: a score, or why there is none."""

from collections.abc import Mapping, Sequence

from osim_core.judge.rubric import Verdict
from osim_core.missing import Missing, Value


def verdict_score(verdicts: Mapping[str, Verdict], id: str) -> Value:
    """The judge's score of an item, in [0, 1]."""
    return verdicts[id].score if id in verdicts else Missing("not judged", id)


def verdict_value(verdicts: Mapping[str, Verdict], id: str, dimension: str) -> Value:
    """The judge's value of one dimension of an item, in [0, 1]."""
    if id not in verdicts:
        return Missing("not judged", id)
    return verdicts[id].values.get(dimension, Missing("not judged", dimension))


def mean(values: Sequence[Value], weights: Sequence[float] | None = None) -> Value:
    """The weighted mean; missing where any value is, since a mean of what happens to be there is another quantity."""
    missing = next((value for value in values if isinstance(value, Missing)), None)
    if missing is not None:
        return missing
    weights = [1.0] * len(values) if weights is None else weights
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
