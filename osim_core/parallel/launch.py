"""How a recipe starts: `python recipes/x.py` starts the ranks itself, `torchrun recipes/x.py` is one of many ranks.

What a person can mend ends a run with one `error: ...` line on stderr, whichever rank meets it, from either start:

    exit code 2   the user's errors (ValueError) and a full disk
    exit code 3   a loss or gradient that is not finite (FloatingPointError); no weight was changed

Set OSIM_TRACEBACK=1 to see where they came from. Everything else is a bug and shows its traceback.
"""

import errno
import multiprocessing
import os
import signal
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from osim_core.parallel.quiet import silence_launcher

USER_ERROR, NON_FINITE = 2, 3


def under_torchrun() -> bool:
    return "RANK" in os.environ


def run(main: Callable[[], None]) -> None:
    """Call `main`; report what `explain` knows in one line and exit with its code. Everything else propagates."""
    try:
        main()
    except (ValueError, FloatingPointError, OSError, RuntimeError) as error:
        line, code = explain(error)
        earlier = _claim(code) if line else _earlier()
        if os.environ.get("OSIM_TRACEBACK") or (line is None and earlier is None):
            raise
        if earlier is None:
            print(f"error: {line}", file=sys.stderr, flush=True)
        code = code if earlier is None else earlier
        if not under_torchrun():
            sys.exit(code)
        for child in multiprocessing.active_children():  # checkpoint writers would outlive what follows
            child.kill()
        os._exit(code)  # a rank may not wait for peers that are still inside a collective


def explain(error: Exception) -> tuple[str | None, int]:
    """The line and the exit code for an error that a person can mend; the line is None for any other."""
    if isinstance(error, ValueError):
        return str(error), USER_ERROR
    if isinstance(error, FloatingPointError):
        return str(error), NON_FINITE
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"disk full: {error.filename or error}; free some space and resume", USER_ERROR
    return None, 1


def start_ranks(processes: int) -> int:
    """Run this very command line in `processes` ranks on this machine; returns the exit code of the first to fail."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    silence_launcher()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-u", *sys.argv)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode or 1
        name = signal.Signals(-failure.exitcode).name
        print(f"rank {rank} was ended by {name}; if nobody did, memory ran out", file=sys.stderr)
        return 128 - failure.exitcode
    return 0


def _marker() -> Path | None:
    """A path that all ranks of this machine share and no other job has, or None: torchrun gives each rank a file in a
    folder of its own below one for the job."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(path).parents[1] / "failed" if path else None


def _claim(code: int) -> int | None:
    """Be the rank that reports; or the exit code of the one that does already.

    A symbolic link is created with its content in one step, so its target keeps the code.
    """
    marker = _marker()
    if marker is None:
        return None
    try:
        marker.symlink_to(str(code))
    except FileExistsError:
        return _earlier()
    except OSError:  # the full disk may be this one: rather two lines than none
        return None
    return None


def _earlier() -> int | None:
    """The exit code of the rank that has reported an error: what its peers then meet is only its absence."""
    marker = _marker()
    return int(os.readlink(marker)) if marker and marker.is_symlink() else None
