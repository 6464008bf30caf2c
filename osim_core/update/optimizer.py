"""AdamW through megatron-core: fp32 master weights and moments, sharded over data parallel when asked.

`ResumableDistributedOptimizer` mends four defects of megatron-core 0.19.2's DistributedOptimizer with torch's AdamW
(used where neither Transformer Engine nor Apex is installed), three in loading a checkpoint and one in saving.
"""

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE, DistributedOptimizer
from megatron.core.transformer.module import Float16Module

from osim_core.config import LayoutConfig, OptimizerConfig


class ResumableDistributedOptimizer(DistributedOptimizer):
    """DistributedOptimizer whose checkpoints load into torch.optim.AdamW."""

    def sharded_state_dict(self, model_sharded_state_dict, is_loading=False, *args, **kwargs):
        # AdamW makes its state on the first step; a fresh process has none to describe what it wants to load
        if not self.optimizer.state:
            if is_loading:
                self._init_optimizer_states_with_dummy_values()
            else:
                self._state_before_any_update()
        return super().sharded_state_dict(model_sharded_state_dict, is_loading, *args, **kwargs)

    def _state_before_any_update(self):
        # a run may save before its first update (nothing to learn from so far), and megatron-core cannot
        for group in self.optimizer.param_groups:
            for param in group["params"]:
                moments = {name: torch.zeros_like(param) for name in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[param] = {"step": torch.tensor(0.0), **moments}

    def _set_main_param_and_optimizer_states(self, model_param, tensors):
        # `step` lives in the parameter groups of the checkpoint, not beside the moments: keep the one in place
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        super()._set_main_param_and_optimizer_states(model_param, {**state, **tensors})

    def load_state_dict(self, state_dict):
        # one `step` tensor would be shared by all parameters and count once for each of them every update
        super().load_state_dict(state_dict)
        for state in self.optimizer.state.values():
            state["step"] = state["step"].clone()


def wrap_model(chunks: list, layout: LayoutConfig) -> list[DistributedDataParallel]:
    """Add mixed precision and data parallelism: fp32 gradient buffers, summed (never averaged) over ranks."""
    config = chunks[0].config
    buffers = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=layout.overlap,
        overlap_param_gather=layout.overlap and layout.distributed_optimizer,
        use_distributed_optimizer=layout.distributed_optimizer,
    )
    if config.bf16:
        chunks = [Float16Module(config, chunk) for chunk in chunks]
    return [
        DistributedDataParallel(config, buffers, chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]


def build_optimizer(
    chunks: list[DistributedDataParallel], optimizer: OptimizerConfig, layout: LayoutConfig
) -> MegatronOptimizer:
    """AdamW over this rank's parameters; no weight decay on norms."""
    bf16 = chunks[0].config.bf16
    config = MegatronOptimizerConfig(
        optimizer="adam",
        lr=optimizer.learning_rate,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_eps=optimizer.eps,
        clip_grad=optimizer.clip_norm,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=layout.distributed_optimizer,
        overlap_param_gather=layout.overlap and layout.distributed_optimizer,
    )
    built = get_megatron_optimizer(config, chunks)
    for part in chained(built):
        if type(part) is DistributedOptimizer and not HAVE_APEX_OR_TE:
            part.__class__ = ResumableDistributedOptimizer  # get_megatron_optimizer names the class it builds
    return built


def chained(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    """The optimizers inside `optimizer`, or itself."""
    return optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]


def set_hyper_parameters(optimizer: MegatronOptimizer, learning_rate: float, weight_decay: float) -> None:
    """Apply this update's learning rate and weight decay (with each group's multiplier)."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_mult", 1.0)
        group["weight_decay"] = weight_decay * group.get("wd_mult", 1.0)
