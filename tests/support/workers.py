"""A group of gloo ranks that lives for a whole test session, because importing megatron-core costs each process 5-15 s.

`Workers(n).run(function, **arguments)` calls a module-level function on every rank and returns the ranks' results; an
exception on any rank is raised here with that rank's traceback.
"""

import gc
import itertools
import multiprocessing
import multiprocessing.connection
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

PATIENCE = 240  # seconds a rank may be silent; the first call imports megatron-core


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _serve(rank: int, size: int, port: int, pipe) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank)
    )
    import torch

    torch.set_num_threads(1)
    store = torch.distributed.TCPStore("127.0.0.1", port, size, is_master=rank == 0)
    for number in itertools.count():
        if (job := pipe.recv()) is None:
            break
        function, arguments = job
        # a fresh world for every job: megatron-core never destroys its groups
        fresh = torch.distributed.PrefixStore(str(number), store)
        torch.distributed.init_process_group("gloo", store=fresh, rank=rank, world_size=size)
        try:
            pipe.send((True, function(**arguments)))
        except BaseException:  # handed to the parent, which raises it
            pipe.send((False, traceback.format_exc()))
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        gc.collect()  # the job's model refers to its groups in cycles, and each polls in threads until it is freed


class Workers:
    """`size` spawned ranks in one gloo group."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        port = free_port()
        self.pipes, self.processes, self.alive = [], [], True
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, port, theirs))
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], **arguments: Any) -> list[Any]:
        """Call `function(**arguments)` on every rank; returns the results in rank order."""
        for pipe in self.pipes:
            pipe.send((function, arguments))
        answers: dict[int, Any] = {}
        while len(answers) < len(self.pipes):
            waiting = {pipe: rank for rank, pipe in enumerate(self.pipes) if rank not in answers}
            ready = multiprocessing.connection.wait(waiting, timeout=PATIENCE)
            if not ready:
                self.kill()
                raise TimeoutError(f"ranks {sorted(waiting.values())} did not answer within {PATIENCE} s")
            for pipe in ready:
                fine, answers[waiting[pipe]] = pipe.recv()
                if not fine:  # its peers may wait for it inside a collective for ever
                    self.kill()
                    raise RuntimeError(f"rank {waiting[pipe]}:\n{answers[waiting[pipe]]}")
        return [answers[rank] for rank in range(len(self.pipes))]

    def kill(self) -> None:
        """End the ranks at once; the group cannot be used again."""
        for process in self.processes:
            process.kill()
        self.alive = False

    def close(self) -> None:
        """Let the ranks finish."""
        if not self.alive:
            return
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(20)
            if process.is_alive():
                process.kill()
