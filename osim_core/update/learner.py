"""The update step, blind to which algorithm made the loss weights: forward, backward, guard, clip, AdamW.

megatron-core's schedules run the micro-batches (plain, 1F1B or interleaved); losses are normalised globally before
backward (osim_core/loss/streams.py), so gradients are summed, never averaged.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func

from osim_core.batch import PackedBatch
from osim_core.config import LayoutConfig, LoraConfig, ModelConfig, OptimizerConfig, TrainConfig
from osim_core.loss.head import HeadTargets, token_logprobs
from osim_core.loss.streams import Objective, Row, normalisers, objective
from osim_core.model.build import build_model
from osim_core.model.packed_row import PackedRow
from osim_core.parallel.context import gather_row, local_borders, local_slice
from osim_core.parallel.device import device
from osim_core.update.optimizer import build_optimizer, chained, set_hyper_parameters, wrap_model
from osim_core.update.schedule import learning_rate
from osim_kernels.policy_loss import PolicyMetrics


class NonFiniteError(FloatingPointError):
    """A loss or gradient norm was NaN or infinite; the batch was dumped and no weight changed."""


@dataclass(frozen=True)
class Losses:
    """Cross-entropy (nats) over all ranks, per source: float64 [sources] sums and the weights they sum over."""

    sums: torch.Tensor
    weights: torch.Tensor

    @property
    def mean(self) -> float:
        """Mean over all tokens that carry loss."""
        return (self.sums.sum() / self.weights.sum()).item()

    def by_source(self) -> dict[int, float]:
        """Token mean of each source that has a token here."""
        present = self.weights.nonzero().flatten().tolist()
        return {source: (self.sums[source] / self.weights[source]).item() for source in present}


@dataclass(frozen=True)
class StepResult:
    """objective: what the update minimised, all streams together. losses: of the ce stream. policy: what the policy
    stream did, over all ranks, or None where the step had none."""

    objective: float
    losses: Losses
    policy: PolicyMetrics | None
    gradient_norm: float
    learning_rate: float
    updated: bool


class Learner:
    """A model, its optimizer and the schedule that moves micro-batches through them.

    Needs osim_core.parallel.layout.initialize first; fill the weights with osim_core.checkpoint.hf.load_weights and
    then call `weights_loaded`.
    """

    def __init__(
        self,
        model: ModelConfig,
        layout: LayoutConfig,
        optimizer: OptimizerConfig,
        train: TrainConfig,
        num_sources: int,
        dump: Path,
        objective: Objective | None = None,
        lora: LoraConfig | None = None,
    ) -> None:
        self.objective = objective or Objective()
        self.model, self.optimizer_config, self.train = model, optimizer, train
        self.num_sources, self.dump, self.lora = num_sources, dump, lora
        self.chunks = wrap_model(build_model(model, layout, train.precision, lora), layout)
        self.optimizer = build_optimizer(self.chunks, optimizer, layout)
        config = self.chunks[0].config
        # the schedules offer the token count of Megatron's own per-token loss; ours is normalised already
        config.finalize_model_grads_func = lambda chunks, _tokens, **kw: finalize_model_grads(chunks, None, **kw)
        if layout.overlap:
            single = len(self.chunks) == 1
            syncs = [chunk.no_sync for chunk in self.chunks]
            config.no_sync_func = syncs[0] if single else syncs
            if not single:
                config.grad_sync_func = [chunk.start_grad_sync for chunk in self.chunks]
                config.param_sync_func = [chunk.start_param_sync for chunk in self.chunks]
        self.run_schedule = get_forward_backward_func()

    def weights_loaded(self) -> None:
        """Copy the model's weights into the optimizer's fp32 masters."""
        self.optimizer.reload_model_params()

    def update(self, batches: Sequence[PackedBatch], step: int) -> StepResult:
        """One optimizer step (0-based `step`) on this data-parallel rank's micro-batches. Collective.

        Raises NonFiniteError before any weight changes when the loss or the gradient norm is not finite and
        train.on_non_finite is "stop"; with "skip" the update is left out and reported.
        """
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        value, losses, policy = self._run(batches, normalisers(batches))
        self.optimizer.prepare_grads()
        norm = float(self.optimizer.get_grad_norm())
        rate = learning_rate(self.optimizer_config, step, self.train.steps)
        finite = torch.isfinite(torch.tensor([value, norm])).all().item()
        if not finite:
            self._dump(batches, step)
            if self.train.on_non_finite == "stop":
                dist.barrier()  # the first rank to leave ends the job: every dump is complete by then
                raise NonFiniteError(
                    f"step {step + 1}: loss {value}, gradient norm {norm}; weights unchanged, batch dumped to "
                    f"{self.dump}; look at it, or set --train.on-non-finite skip"
                )
            return StepResult(value, losses, policy, norm, rate, updated=False)
        set_hyper_parameters(self.optimizer, rate, self.optimizer_config.weight_decay)
        if self.optimizer_config.clip_norm > 0:
            for part in chained(self.optimizer):
                clip_grad_by_total_norm_fp32(part.get_parameters(), self.optimizer_config.clip_norm, norm)
        self.optimizer.step_with_ready_grads()
        return StepResult(value, losses, policy, norm, rate, updated=True)

    def evaluate(self, steps: Sequence[Sequence[PackedBatch]]) -> Losses:
        """Cross-entropy over several global batches, without gradients. Collective."""
        with self._evaluating():
            parts = [self._run(batches, None)[1] for batches in steps]
        return Losses(sum(part.sums for part in parts), sum(part.weights for part in parts))

    def logprobs(self, batches: Sequence[PackedBatch]) -> list[torch.Tensor]:
        """fp32 [T] on the host for each micro-batch: log p of each label that some stream weighs, 0 elsewhere.

        Forward only, with the present weights. Collective; every rank of a model replica gets the whole rows.
        """
        group = parallel_state.get_context_parallel_group()
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        rows = [torch.empty(batch.num_tokens, device=device()) for batch in batches]
        kept: list[torch.Tensor] = []
        with self._evaluating():
            self._schedule(batches, lambda logprob_L, batch, weights: self._keep(kept, logprob_L), forward_only=True)
        for index, row_T in enumerate(rows):
            if kept:  # this rank is of the last pipeline stage
                row_T.copy_(gather_row(kept[index].float().view(-1, 1, 1), group).flatten())
            dist.broadcast(row_T, src=last, group=parallel_state.get_pipeline_model_parallel_group())
        return [row_T.cpu() for row_T in rows]

    def with_old_logprobs(self, batches: Sequence[PackedBatch]) -> list[PackedBatch]:
        """The same micro-batches with the present weights' log-probs as the policy stream's old ones. Collective."""
        pairs = zip(batches, self.logprobs(batches), strict=True)
        return [replace(row, policy=replace(row.policy, old_logprobs_T=logprob_T)) for row, logprob_T in pairs]

    @staticmethod
    def _keep(kept: list[torch.Tensor], logprob_L: torch.Tensor) -> torch.Tensor:
        kept.append(logprob_L.detach())
        return logprob_L.sum()

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        for chunk in self.chunks:
            chunk.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for chunk in self.chunks:
                chunk.train()

    def _run(
        self, batches: Sequence[PackedBatch], totals: dict[str, float] | None
    ) -> tuple[float, Losses, PolicyMetrics | None]:
        """Send the micro-batches through the schedule; objective, losses and metrics of all ranks, on every rank.

        totals: the streams' normalisers; None runs forward only, where nothing is normalised (and a batch may be all
        padding).
        """
        sums = torch.zeros(2, self.num_sources, dtype=torch.float64, device=device())
        # one tensor, so that a step costs one reduction: the objective, then the sums of PolicyMetrics
        policy = PolicyMetrics.zeros(device())
        value = torch.zeros(1, dtype=torch.float64, device=device())

        def loss(logprob_L: torch.Tensor, batch: PackedBatch, row: Row) -> torch.Tensor:
            nonlocal policy
            with torch.no_grad():
                if (weight_L := row.weights.get("ce")) is not None:
                    sums.add_(self._cross_entropy(logprob_L, weight_L.double(), batch))
            if totals is None:
                return logprob_L.sum()
            share, metrics = objective(logprob_L, row, totals, self.objective)
            value.add_(share.detach())
            policy = policy + metrics if metrics else policy
            return share

        self._schedule(batches, loss, forward_only=totals is None)
        everyone = parallel_state.get_data_parallel_group(with_context_parallel=True)
        packed = torch.cat([sums.flatten(), value, policy.sums])
        dist.all_reduce(packed, group=everyone)
        worst = policy.mismatch_max.reshape(1).clone()
        dist.all_reduce(worst, op=dist.ReduceOp.MAX, group=everyone)
        # only the last pipeline stage has summed anything
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        for tensor in (packed, worst):
            dist.broadcast(tensor, src=last, group=parallel_state.get_pipeline_model_parallel_group())
        flat, value, policy_sums = packed.cpu().split([sums.numel(), 1, len(policy.sums)])
        metrics = PolicyMetrics(policy_sums, worst[0].cpu()) if totals and totals["policy"] else None
        return value.item(), Losses(*flat.view_as(sums)), metrics

    def _cross_entropy(self, logprob_L: torch.Tensor, weight_L: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """float64 [2, sources]: weighted sums of -log p, and of the weights, over this rank's tokens."""
        lengths_S = batch.cu_seqlens.diff()
        sources_T = batch.sources_S.repeat_interleave(lengths_S, output_size=batch.num_tokens)
        sources_L = self._local(sources_T).clamp(min=0).long()  # padding weighs nothing
        sums = torch.zeros(2, self.num_sources, dtype=torch.float64, device=device())
        sums[0].index_add_(0, sources_L, -logprob_L.double() * weight_L)
        sums[1].index_add_(0, sources_L, weight_L)
        return sums

    def _local(self, tensor_T: torch.Tensor) -> torch.Tensor:
        rank = parallel_state.get_context_parallel_rank()
        return local_slice(tensor_T, rank, parallel_state.get_context_parallel_world_size())

    def _schedule(
        self,
        batches: Sequence[PackedBatch],
        loss: Callable[[torch.Tensor, PackedBatch, Row], torch.Tensor],
        forward_only: bool,
    ) -> None:
        """Run megatron-core's schedule over the micro-batches. On the last pipeline stage, loss(logprob_L, batch on
        the device, this rank's part of it) gives what is differentiated."""
        rank = parallel_state.get_context_parallel_rank()
        size = parallel_state.get_context_parallel_world_size()

        def forward_step(batches: Iterator[PackedBatch], chunk: torch.nn.Module):
            row = next(batches)
            batch = row.to(device())
            needed_T = torch.stack(list(row.weights.values())).abs().amax(0)  # on the host, as active_rows is
            needed_L = self._local(needed_T)
            logprob_L = chunk(
                self._local(batch.tokens_T)[None],
                self._local(batch.positions_T)[None],
                None,
                packed_seq_params=PackedRow.of(row, self.model, device()),
                output_processor=token_logprobs,
                output_processor_context=HeadTargets(
                    self._local(batch.labels_T),
                    needed_L.to(device(), non_blocking=True),
                    int(needed_L.count_nonzero()),
                ),
            )
            local = Row(
                {name: self._local(weight_T) for name, weight_T in batch.weights.items()},
                batch.policy and batch.policy.map(self._local),
                batch.policy and local_borders(batch.cu_seqlens.long(), batch.num_tokens, rank, size),
            )

            def scaled(logprob_L: torch.Tensor):
                return loss(logprob_L, batch, local), torch.zeros((), dtype=torch.int), {}

            return logprob_L, scaled

        iterators = [iter(batches) for _ in self.chunks]
        self.run_schedule(
            forward_step_func=forward_step,
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=self.chunks if len(self.chunks) > 1 else self.chunks[0],
            num_microbatches=len(batches),
            seq_length=batches[0].num_tokens,
            micro_batch_size=1,
            forward_only=forward_only,
        )

    def _dump(self, batches: Sequence[PackedBatch], step: int) -> None:
        """Keep what this rank was fed when the numbers went wrong."""
        self.dump.mkdir(parents=True, exist_ok=True)
        torch.save([vars(batch) for batch in batches], self.dump / f"step{step + 1}-rank{dist.get_rank()}.pt")
