"""What a rank of the worker group runs in the tests of the update step; module-level, so spawned ranks import it."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from osim_core.config import LayoutConfig, OptimizerConfig, TrainConfig
from tests.parallel.cases import gather, make_learner
from tests.support.models import TINY_QWEN3


@contextmanager
def learner(layout: LayoutConfig, dump: Path = Path("unused"), train: dict | None = None, **optimizer):
    """A Learner with seeded weights in this layout; its groups are destroyed afterwards."""
    from osim_core.parallel.layout import initialize

    initialize(layout, seed=1)
    from megatron.core import parallel_state

    try:
        built = make_learner(TINY_QWEN3, layout, rows=1, precision="fp32", learning_rate=1e-3, steps=3)
        built.dump = dump
        built.train = TrainConfig(steps=3, global_batch_rows=1, precision="fp32", **(train or {}))
        built.optimizer_config = replace(
            OptimizerConfig(learning_rate=1e-3, schedule="constant", clip_norm=0.0), **optimizer
        )
        yield built
    finally:
        parallel_state.destroy_model_parallel()


def weights(built) -> dict[str, torch.Tensor]:
    """HF name -> full tensor."""
    return gather(built, TINY_QWEN3, lambda parameter: parameter.detach())


def update_with_planted_nan(layout: LayoutConfig, rows: list, dump: Path, on_non_finite: str) -> dict:
    """One NaN in one weight of rank 0, then an update. What it raised or returned, and whether any bit changed."""
    import torch.distributed as dist

    from osim_core.update.learner import NonFiniteError

    with learner(layout, dump, {"on_non_finite": on_non_finite}) as built:
        if dist.get_rank() == 0:
            planted = next(p for name, p in built.chunks[0].named_parameters() if "linear_qkv.weight" in name)
            planted.data.view(-1)[3] = float("nan")
        before = weights(built)
        raised, result = None, None
        try:
            result = built.update(rows, 0)
        except NonFiniteError as error:
            raised = str(error)
        same = all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in pairs(before, weights(built)))
        return {"raised": raised, "updated": result and result.updated, "weights_unchanged": same}


def pairs(before: dict, after: dict) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(before[name], after[name]) for name in before]


def clip(rows: list, clip_norm: float) -> dict:
    """One update on one rank: the gradients that AdamW used (in fp32 they are clipped in place) and the norm before."""
    with learner(LayoutConfig(distributed_optimizer=False), clip_norm=clip_norm) as built:
        norm = built.update(rows, 0).gradient_norm
        return {"norm": norm, "gradients": [p.main_grad.clone() for p in built.chunks[0].parameters()]}


def decay(rows: list) -> dict:
    """Weights before and after one update with and without weight decay."""
    result = {}
    for name, rate in (("without", 0.0), ("with", 0.5)):
        with learner(LayoutConfig(), weight_decay=rate) as built:
            result["before"] = weights(built)
            built.update(rows, 0)
            result[name] = weights(built)
    return result


def count(rows: list) -> list[int]:
    """count_work of this data-parallel rank's rows."""
    from osim_core.parallel.layout import initialize

    initialize(LayoutConfig(), seed=1)
    from megatron.core import parallel_state

    from osim_core.update.work import count_work

    try:
        mine = rows[parallel_state.get_data_parallel_rank() :: parallel_state.get_data_parallel_world_size()]
        work = count_work(mine)
        return [work.tokens, work.squared_lengths, work.loss_tokens, work.slots, work.padding]
    finally:
        parallel_state.destroy_model_parallel()


def streams(batches: list) -> dict | str:
    """normalisers(batches) and the objective's value and gradient, or the error's text."""
    from osim_core.parallel.layout import initialize

    initialize(LayoutConfig(), seed=1)
    from megatron.core import parallel_state

    from osim_core.loss.streams import Objective, Row, normalisers, objective

    try:
        totals = normalisers(batches)
        values, gradients = 0.0, []
        for batch in batches:
            logprob_T = -(batch.tokens_T.float() / 7.0).requires_grad_()
            logprob_T.retain_grad()
            loss, _ = objective(logprob_T, Row(batch.weights, None, None), totals, Objective())
            loss.backward()
            values += loss.item()
            gradients.append(logprob_T.grad)
        return {"totals": totals, "loss": values, "gradient": torch.cat(gradients)}
    except ValueError as error:
        return str(error)
    finally:
        parallel_state.destroy_model_parallel()


def refusals(rows: list, folder: Path) -> list[str]:
    """Save a checkpoint trained on shards "a"; then go on with other shards, another model, ranks that differ."""
    import torch.distributed as dist

    layout = LayoutConfig(tensor=dist.get_world_size())
    with learner(layout) as built:
        from osim_core.checkpoint.store import CheckpointStore

        store = CheckpointStore(folder, keep=1, asynchronous=False, data="a")
        built.update(rows, 0)
        store.save(built, TINY_QWEN3, layout, step=2)
        assert store.resume(built, TINY_QWEN3, layout) == 2

        said = []
        for data, model in (
            ("b", TINY_QWEN3),
            ("a", replace(TINY_QWEN3, rope_theta=5.0)),
            (f"{dist.get_rank()}", None),
        ):
            try:
                CheckpointStore(folder, keep=1, asynchronous=False, data=data).resume(built, model, layout)
            except ValueError as error:
                said.append(str(error))
        return said
