"""A group of gloo ranks that lives for a whole test session, because importing megatron-core costs each process 5-15 s.

`Workers(n).run(function, **arguments)` calls a module-level function on every rank and returns the ranks' results; an
exception on any rank is raised here with that rank's traceback.
"""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any


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
    torch.distributed.init_process_group("gloo")
    while (job := pipe.recv()) is not None:
        function, arguments = job
        try:
            pipe.send((True, function(**arguments)))
        except BaseException:  # handed to the parent, which raises it
            pipe.send((False, traceback.format_exc()))
    torch.distributed.destroy_process_group()


class Workers:
    """`size` spawned ranks in one gloo group."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        port = free_port()
        self.pipes, self.processes = [], []
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
        answers = []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(240):
                raise TimeoutError(f"rank {rank} of {len(self.pipes)} did not answer within 240 s")
            answers.append(pipe.recv())
        for rank, (fine, answer) in enumerate(answers):
            if not fine:
                raise RuntimeError(f"rank {rank}:\n{answer}")
        return [answer for _, answer in answers]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(20)
            if process.is_alive():
                process.kill()
