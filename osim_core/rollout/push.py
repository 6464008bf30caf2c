"""The trainer's weights into a rollout engine: from Megatron's shards to Hugging Face names, one tensor at a time.

    push(engine, chunks, model, version=step + 1)                   # every rank; `engine` is None where there is none
    push(engine, chunks, model, version=step + 1, value=merged)     # base + LoRA (model/lora.py), as a plain model

An engine belongs to the first rank of a model copy (tensor rank 0 of pipeline stage 0), and any number of copies may
have one: each copy streams to its own. Tensor ranks gather one tensor, later stages send theirs on one by one, so no
rank ever holds the model a second time. Every tensor is read twice: the checksum is the trainer's own account of what
it has, taken before anything is sent. A tied head is its embedding and does not travel.
"""

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from osim_core.checkpoint.hf import full_tensors
from osim_core.config import ModelConfig
from osim_core.rollout.checksum import checksum
from osim_core.rollout.engine import Engine, EngineStopped

Value = Callable[[torch.nn.Parameter], torch.Tensor]


def push(
    engine: Engine | None,
    chunks: list[torch.nn.Module],
    model: ModelConfig,
    version: int,
    value: Value = torch.nn.Parameter.detach,
) -> None:
    """Give the engines weights `version`. Collective over all ranks.

    value  maps a parameter to the tensor that is pushed in its place

    Raises what an engine raised (ValueError, OSError, EngineStopped) on every rank, so that none waits for another.
    """
    copy = parallel_state.get_model_parallel_group()  # tensor x pipeline
    first = parallel_state.get_tensor_model_parallel_rank() == parallel_state.get_pipeline_model_parallel_rank() == 0
    assert engine is None or first, "an engine belongs to the first rank of a model copy"
    error: Exception | None = None
    if any(_gathered(engine is not None, copy)):
        announced = checksum(streamed(chunks, model, value))
        weights = streamed(chunks, model, value)
        if engine is not None:
            try:
                engine.push(version, weights, announced)
            except (ValueError, OSError, EngineStopped) as refused:
                error = refused
        for _ in weights:  # the other ranks', and what a refusal left: the gathers are collective
            pass
    errors = [e for e in _gathered(error, dist.group.WORLD) if e is not None]
    if errors:
        raise errors[0]


@torch.no_grad()
def streamed(
    chunks: list[torch.nn.Module], model: ModelConfig, value: Value = torch.nn.Parameter.detach
) -> Iterator[tuple[str, torch.Tensor]]:
    """(Hugging Face name, full CPU tensor) of the whole model, on the first rank of each model copy and nowhere else.

    Collective over the copy: every rank must exhaust it.
    """
    stage = parallel_state.get_pipeline_model_parallel_rank()
    own = full_tensors(chunks, model, value)
    if stage == 0:
        yield from own
    stages = parallel_state.get_pipeline_model_parallel_group()
    if stages.size() == 1 or parallel_state.get_tensor_model_parallel_rank() != 0:
        for _ in own:
            pass
        return
    if stage > 0:
        for item in own:
            _send(item, stages)
        _send(None, stages)
        return
    for source in range(1, stages.size()):
        while (item := _receive(source, stages)) is not None:
            yield item


def _gathered(value, group: dist.ProcessGroup) -> list:
    values = [None] * group.size()
    dist.all_gather_object(values, value, group=group)
    return values


def _device(group: dist.ProcessGroup) -> torch.device:
    """Where this group's messages must lie."""
    return torch.device("cpu" if dist.get_backend(group) == "gloo" else "cuda")


def _send(item: tuple[str, torch.Tensor] | None, group: dist.ProcessGroup) -> None:
    """A named tensor to the first stage; None ends the stream."""
    device = _device(group)
    header = None if item is None else (item[0], item[1].shape, item[1].dtype)
    dist.send_object_list([header], group=group, group_dst=0, device=device)
    if item is not None:
        dist.send(item[1].contiguous().to(device), group=group, group_dst=0)


def _receive(source: int, group: dist.ProcessGroup) -> tuple[str, torch.Tensor] | None:
    device, header = _device(group), [None]
    dist.recv_object_list(header, group=group, group_src=source, device=device)
    if header[0] is None:
        return None
    name, shape, dtype = header[0]
    tensor = torch.empty(shape, dtype=dtype, device=device)
    dist.recv(tensor, group=group, group_src=source)
    return name, tensor.cpu()
