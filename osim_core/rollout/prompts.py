"""Which samples a step plays: a mixture of tasks, each in epochs, as a function of a cursor.

    prompts = Prompts({"tomi": tomi, "next-turn": next_turn}, {"tomi": 1.0, "next-turn": 3.0}, seed=1)
    samples = [prompts[slot] for slot in range(cursor, cursor + 64)]

Slot i never depends on what was asked before, so a resumed run, another number of ranks and a look ahead all see the
same samples; the cursor is the only state. Any run of slots holds every task in its share to within one.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from osim_core.soul.episode import Sample, Split, Task

PERIOD = 1000  # slots after which the order of tasks repeats; shares are met to within one in a thousand


def parse_shares(tasks: Sequence[str]) -> dict[str, float]:
    """("style", "tomi:2") as {"style": 1.0, "tomi": 2.0}. Raises ValueError for what is no number, and names twice."""
    shares: dict[str, float] = {}
    for text in tasks:
        name, _, share = text.partition(":")
        if name in shares:
            raise ValueError(f"tasks: {name} is named twice")
        try:
            shares[name] = float(share or 1.0)
        except ValueError:
            raise ValueError(f"tasks: {text!r} is no task with a share, as tomi or tomi:2") from None
    return shares


class Prompts:
    """The infinite sequence of (task, sample).

    shares: task id -> weight, positive. Raises ValueError for a task without samples or a share that is not positive.
    """

    def __init__(self, tasks: Mapping[str, Task], shares: Mapping[str, float], seed: int, split: Split = "train"):
        self.tasks, self.seed = dict(tasks), seed
        self.samples = {name: task.samples(split) for name, task in self.tasks.items()}
        for name, samples in self.samples.items():
            if not samples:
                raise ValueError(f"task {name} has no {split} samples")
            if not shares[name] > 0:
                raise ValueError(f"tasks: the share of {name} must be above 0, got {shares[name]}")
        total = sum(shares[name] for name in self.tasks)
        self.shares = {name: shares[name] / total for name in self.tasks}
        self.turns = self._turns()
        self._permutation = lru_cache(maxsize=4 * len(self.tasks))(self._shuffled)

    def __getitem__(self, slot: int) -> tuple[Task, Sample]:
        name, index = self._place(slot)
        samples = self.samples[name]
        epoch, place = divmod(index, len(samples))
        return self.tasks[name], samples[self._permutation(name, epoch)[place]]

    def _place(self, slot: int) -> tuple[str, int]:
        """The task of a slot, and how many slots it had before."""
        period, place = divmod(slot, len(self.turns))
        name = self.turns[place]
        return name, period * self.turns.count(name) + self.turns[:place].count(name)

    def _turns(self) -> tuple[str, ...]:
        """Whose turn each slot is, over one period: always the task that is furthest behind its share."""
        counts, turns = dict.fromkeys(self.tasks, 0), []
        for slot in range(1, PERIOD + 1):
            turns.append(max(counts, key=lambda name: self.shares[name] * slot - counts[name]))
            counts[turns[-1]] += 1
        return tuple(turns)

    def _shuffled(self, name: str, epoch: int) -> np.ndarray:
        seed = [self.seed, epoch, *name.encode()]
        return np.random.Generator(np.random.PCG64(seed)).permutation(len(self.samples[name]))
