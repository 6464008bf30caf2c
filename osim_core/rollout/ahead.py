"""Rollouts ahead of the learner, by a bounded number of steps.

    with Ahead(actor.play, staleness=1, start=0) as ahead:
        for step in range(steps):
            played = ahead.take(step)      # waits only if it is not made yet
            ...update, push the new weights...
            ahead.advance(step + 1)        # from here on, step + 1 + staleness may be made

With staleness 0 nothing runs ahead: `take` makes the step's rollouts there and then, and a run is reproducible. With
staleness k a thread makes them while the learner updates, with whatever weights the engine holds, at most k steps older
than those that will learn from them: each token's own version is in its ledger, and the loss corrects for it.
"""

import threading
from collections.abc import Callable
from types import TracebackType


class Ahead[Played]:
    """make(step) is called for every step from `start`, in order, in one thread.

    buffer: what an earlier run had made already, by step (see `buffered`), taken before anything is made.
    """

    def __init__(
        self,
        make: Callable[[int], Played],
        staleness: int,
        start: int = 0,
        buffer: dict[int, Played] | None = None,
    ) -> None:
        if staleness < 0:
            raise ValueError(f"rollout.staleness must be 0 or more, got {staleness}")
        self.make, self.staleness = make, staleness
        self._made: dict[int, Played] = dict(buffer or {})
        self._next, self._limit = max([start, *(step + 1 for step in self._made)]), start + staleness
        self._failure: Exception | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="rollouts", daemon=True) if staleness else None

    def take(self, step: int) -> Played:
        """The rollouts of `step`; each step can be taken once. What `make` raised is raised here."""
        if self._thread is None:
            return self._made.pop(step) if step in self._made else self.make(step)
        with self._changed:
            self._changed.wait_for(lambda: step in self._made or self._failure)
            if step not in self._made:
                raise self._failure
            return self._made.pop(step)

    def advance(self, step: int) -> None:
        """The learner has the weights of `step`: rollouts of up to `step + staleness` may be made."""
        with self._changed:
            self._limit = step + self.staleness
            self._changed.notify_all()

    def buffered(self) -> dict[int, Played]:
        """What is made and not taken, by step: part of a run's state."""
        with self._changed:
            return dict(self._made)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next <= self._limit or self._closed)
                if self._closed:
                    return
                step = self._next
            try:
                played = self.make(step)
            except Exception as error:  # not lost: `take` raises it where the run can end in order
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._made[step], self._next = played, step + 1
                self._changed.notify_all()

    def __enter__(self) -> "Ahead[Played]":
        if self._thread:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread and self._thread.is_alive():
            self._thread.join()
