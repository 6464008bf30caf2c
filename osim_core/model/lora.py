"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on every linear layer of a decoder, under any layout.

    chunks = build_model(model, layout, precision, lora=LoraConfig(rank=32, alpha=64))
    load_weights(chunks, weights, model)     # the frozen base
    initialise(chunks, seed)                 # A random, B zero: the adapted model starts as the base
    for name, tensor in full_tensors(chunks, model, merged): ...   # base + adapters, as a plain model
    with disabled(chunks): ...               # the base alone: the reference policy, without a second copy

y = W x + (alpha / rank) B A x. Only A and B are trained, so only they have gradients and optimizer state. One A serves
the fused query-key-value and the fused gate-up layer.

Shape suffixes: R rank, I and O the layer's inputs and outputs on this tensor-parallel rank.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.spec_utils import ModuleSpec, get_submodules
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from osim_core.checkpoint.hf import is_adapter, named_parameters, unwrap
from osim_core.config import LoraConfig


class _Adapter:
    """What both kinds of layer share; beside a parallel linear layer of megatron-core."""

    split_A: int | None  # the dimension of A that tensor parallelism splits
    split_B: int | None

    def _add(self, lora: LoraConfig, inputs: int, outputs: int, gated: bool) -> None:
        self.enabled, self.scale, self.gated = True, lora.alpha / lora.rank, gated
        weight, config = self.weight, self.config
        weight.requires_grad_(False)
        self.lora_A_RI = torch.nn.Parameter(weight.new_empty(lora.rank, inputs))
        self.lora_B_OR = torch.nn.Parameter(weight.new_empty(outputs, lora.rank))
        for parameter, dim in ((self.lora_A_RI, self.split_A), (self.lora_B_OR, self.split_B)):
            if dim is not None:
                set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=dim, stride=1)
            else:
                parameter.tensor_model_parallel = False
            # a replicated factor sees this rank's part of the sequence alone: megatron-core sums its gradient
            parameter.sequence_parallel = dim is None and config.sequence_parallel
        weight.adapter = self

    @torch.no_grad()
    def merged(self) -> torch.Tensor:
        """This rank's shard of W + scale B A, in W's dtype; A and B are of the same shard, so nothing is exchanged."""
        return self.weight + self.scale * (self.lora_B_OR.float() @ self.lora_A_RI.float()).to(self.weight.dtype)

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        splits = {"weight": 0 if self.split_A is None else 1, "lora_A_RI": self.split_A, "lora_B_OR": self.split_B}
        state = make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {name: dim for name, dim in splits.items() if dim is not None},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )
        if self.gated:  # each rank holds its gate rows, then its up rows: MLP does the same to the weight
            key = f"{prefix}lora_B_OR"
            state[key] = apply_swiglu_sharded_factory(state[key], sharded_offsets)
        return state


class LoraColumnParallelLinear(_Adapter, ColumnParallelLinear):
    """A whole, B split by outputs."""

    split_A, split_B = None, 0

    def __init__(self, *args, lora: LoraConfig, gated: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._add(lora, self.input_size, self.output_size_per_partition, gated)

    def forward(self, input_, *args, **kwargs):
        output, bias = super().forward(input_, *args, **kwargs)
        if not self.enabled:
            return output, bias
        low = F.linear(input_, self.lora_A_RI)
        if self.sequence_parallel:
            low = gather_from_sequence_parallel_region(low, tensor_parallel_output_grad=True, group=self.tp_group)
        else:
            low = copy_to_tensor_model_parallel_region(low, group=self.tp_group)
        return output + self.scale * F.linear(low, self.lora_B_OR), bias


class LoraRowParallelLinear(_Adapter, RowParallelLinear):
    """A split by inputs, B whole."""

    split_A, split_B = 1, None

    def __init__(self, *args, lora: LoraConfig, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._add(lora, self.input_size_per_partition, self.output_size, gated=False)

    def forward(self, input_, *args, **kwargs):
        output, bias = super().forward(input_, *args, **kwargs)
        if not self.enabled:
            return output, bias
        low = F.linear(input_, self.lora_A_RI)
        if self.sequence_parallel:
            low = reduce_scatter_to_sequence_parallel_region(low, group=self.tp_group)
        else:
            low = reduce_from_tensor_model_parallel_region(low, group=self.tp_group)
        return output + self.scale * F.linear(low, self.lora_B_OR), bias


def adapt_spec(layer: ModuleSpec, lora: LoraConfig) -> None:
    """Put adapters on the four linear layers of megatron-core's local transformer layer spec."""
    attention, mlp = layer.submodules.self_attention.submodules, get_submodules(layer.submodules.mlp)
    attention.linear_qkv = partial(LoraColumnParallelLinear, lora=lora)
    attention.linear_proj = mlp.linear_fc2 = partial(LoraRowParallelLinear, lora=lora)
    mlp.linear_fc1 = partial(LoraColumnParallelLinear, lora=lora, gated=True)


def freeze(chunk: torch.nn.Module) -> None:
    """Leave only the adapters of a freshly built chunk trainable."""
    for name, parameter in chunk.named_parameters():
        parameter.requires_grad_(is_adapter(name))
    if chunk.pre_process:
        # activation checkpointing runs backward only through inputs that need a gradient
        chunk.embedding.register_forward_hook(lambda module, inputs, output: output.requires_grad_())


@torch.no_grad()
def initialise(chunks: list[torch.nn.Module], seed: int) -> None:
    """A uniform within 1 / sqrt(inputs), as torch's own linear layers; B zero. The same for every layout."""
    tensor_rank = parallel_state.get_tensor_model_parallel_rank()
    for name, parameter in named_parameters(chunks):
        if name.endswith("lora_B_OR"):
            parameter.zero_()
        elif name.endswith("lora_A_RI"):
            rank, inputs = parameter.shape
            parts = parallel_state.get_tensor_model_parallel_world_size() if parameter.tensor_model_parallel else 1
            digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
            bound = (inputs * parts) ** -0.5
            whole = torch.empty(rank, inputs * parts).uniform_(-bound, bound, generator=generator)
            parameter.copy_(whole.chunk(parts, dim=1)[tensor_rank if parts > 1 else 0])


def merged(parameter: torch.nn.Parameter) -> torch.Tensor:
    """`value` for checkpoint.hf.full_tensors: a base weight with its adapter added, anything else as it is."""
    adapter = getattr(parameter, "adapter", None)
    return parameter.detach() if adapter is None else adapter.merged()


@contextmanager
def disabled(chunks: list[torch.nn.Module]) -> Iterator[None]:
    """Run the base model alone: the reference of a KL term needs no second copy of the weights."""
    adapters = [module for chunk in map(unwrap, chunks) for module in chunk.modules() if isinstance(module, _Adapter)]
    for adapter in adapters:
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.enabled = True
