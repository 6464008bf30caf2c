"""How a recipe starts: `python recipes/x.py` starts the ranks itself, `torchrun recipes/x.py` is one of many ranks.

Errors of the user (ValueError, a full disk) end a run with one line on stderr and exit code 2, from either start.
Set OSIM_TRACEBACK=1 to see where they came from.
"""

import errno
import os
import sys
import time
import uuid
from collections.abc import Callable

USER_ERROR = 2


def under_torchrun() -> bool:
    return "RANK" in os.environ


def run(main: Callable[[], None]) -> None:
    """Call `main`; report the user's errors in one line and exit with code 2. Everything else propagates."""
    try:
        main()
    except (ValueError, OSError) as error:
        full_disk = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if os.environ.get("OSIM_TRACEBACK") or not (isinstance(error, ValueError) or full_disk):
            raise
        if os.environ.get("RANK", "0") != "0":
            time.sleep(2)  # rank 0 usually met the same error, and torchrun ends this rank before it repeats it
        line = f"disk full: {error.filename or error}; free some space and resume" if full_disk else str(error)
        print(f"error: {line}", file=sys.stderr, flush=True)
        # a rank may not wait for peers that are still inside a collective
        os._exit(USER_ERROR) if under_torchrun() else sys.exit(USER_ERROR)


def start_ranks(processes: int) -> int:
    """Run this very command line in `processes` ranks on this machine; returns the exit code of the first to fail."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

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
        return error.get_first_failure()[1].exitcode or 1
    return 0
