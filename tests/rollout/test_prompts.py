"""The samples of a step: shares, epochs, and independence of what was asked before."""

from collections import Counter
from dataclasses import dataclass

import pytest

from osim_core.rollout.prompts import Prompts, parse_shares
from osim_core.soul.episode import Sample


@dataclass(frozen=True)
class Numbered:
    """A task of `count` samples; only `samples` is ever asked of it here."""

    name: str
    count: int

    def samples(self, split: str) -> list[Sample]:
        return [Sample(id=f"{split}/{i}", task=self.name, scenario=str(i), fields={}) for i in range(self.count)]


TASKS = {"a": Numbered("a", 7), "b": Numbered("b", 50), "c": Numbered("c", 3)}
SHARES = {"a": 1.0, "b": 2.5, "c": 0.5}


def names(prompts: Prompts, start: int, stop: int) -> list[tuple[str, str]]:
    return [(sample.task, sample.id) for _, sample in (prompts[slot] for slot in range(start, stop))]


def test_every_task_has_its_share_of_any_window_and_every_epoch_is_a_permutation():
    prompts = Prompts(TASKS, SHARES, seed=3)
    drawn = names(prompts, 0, 4000)
    for start in (0, 17, 990, 3100):
        counts = Counter(task for task, _ in drawn[start : start + 400])
        assert all(abs(counts[name] - 400 * share / 4.0) <= 2 for name, share in SHARES.items()), counts
    of_a = [id for task, id in drawn if task == "a"]
    epochs = [of_a[i : i + 7] for i in range(0, 98, 7)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs) and len({tuple(e) for e in epochs}) > 5


def test_a_slot_depends_on_nothing_but_its_number_and_the_seed():
    whole = names(Prompts(TASKS, SHARES, seed=3), 0, 300)
    assert names(Prompts(TASKS, SHARES, seed=3), 200, 300) == whole[200:]
    assert names(Prompts(TASKS, SHARES, seed=4), 0, 300) != whole


def test_a_task_without_samples_or_share_is_named():
    with pytest.raises(ValueError, match="task empty has no train samples"):
        Prompts({"empty": Numbered("empty", 0)}, {"empty": 1.0}, seed=0)
    with pytest.raises(ValueError, match="the share of a must be above 0, got 0"):
        Prompts(TASKS, {**SHARES, "a": 0.0}, seed=0)


def test_shares_as_they_are_typed():
    assert parse_shares(("style", "tomi:2", "dyad:0.5")) == {"style": 1.0, "tomi": 2.0, "dyad": 0.5}
    for typed, said in ((("a", "a:2"), "a is named twice"), (("a:much",), "'a:much' is no task with a share")):
        with pytest.raises(ValueError, match=said):
            parse_shares(typed)
