"""Where the parts of a stage run: in this process, in a pool of processes, or on a Ray cluster. Same bytes each way,
because parts are independent and named, and nothing depends on which ends first.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed, wait
from types import TracebackType
from typing import Any, Protocol


class Executor(Protocol):
    """run(function, items) yields function(item) of every item as they end; the first exception ends it."""

    def run(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]: ...


class Local:
    """A pool of `processes` on this machine; one process means this one. The pool starts with the first work for it
    and lives until `close` (or the end of a `with` block), since a start costs seconds of imports."""

    def __init__(self, processes: int) -> None:
        if processes < 1:
            raise ValueError(f"processes must be at least 1, got {processes}")
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def run(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        if self.processes == 1 or len(items) < 2:
            yield from map(function, items)
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # a forked child would inherit the locks of our threads
            self._pool = ProcessPoolExecutor(self.processes, mp_context=context, initializer=_end_with_parent)
        futures = [self._pool.submit(function, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:  # after an exception: parts that have not begun never do
            for future in futures:
                future.cancel()
            wait(futures)

    def close(self) -> None:
        """End the pool's processes; the next `run` would start others."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def __enter__(self) -> "Local":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _end_with_parent() -> None:
    """In a process of the pool: end when the parent does. One that is killed closes nothing, and the pool's processes
    hold each other's pipes open, so they would wait for work for ever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


class Ray:
    """Tasks of one core each on the Ray cluster that `ray.init(address=...)` finds.

    Raises ValueError where Ray is not installed. All nodes must see the build's folder under the same path.
    """

    def __init__(self, address: str | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise ValueError("--executor ray needs Ray: pip install 'osim-core[ray]'") from error
        self.ray = ray
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False)

    def __enter__(self) -> "Ray":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """The cluster is not ours to end."""

    def run(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        task = self.ray.remote(num_cpus=1)(function)
        waiting = [task.remote(item) for item in items]
        try:
            while waiting:
                ready, waiting = self.ray.wait(waiting)
                yield self.ray.get(ready[0])
        finally:
            for left in waiting:
                self.ray.cancel(left)
