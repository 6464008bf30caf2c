"""The model: megatron-core's GPTModel for the Qwen3 and Llama families, from one spec.

Linear layers and norms come from Transformer Engine where it is installed on CUDA and from megatron-core and
osim_kernels elsewhere; attention is always packed and always osim_kernels. Parameter names in checkpoints are the
same either way. Weights are not initialised here: osim_core/checkpoint/hf.py fills them, from a Hugging Face
folder or from a seed, identically for every layout.

Shape suffixes: L tokens on this rank, H query heads, G key-value heads, D head dim.
"""

import importlib.util

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from osim_core.config import LayoutConfig, LoraConfig, ModelConfig
from osim_core.model.lora import adapt_spec, freeze
from osim_core.model.packed_row import PackedRow
from osim_core.parallel.context import gather_row
from osim_kernels.packed_attention import packed_attention
from osim_kernels.rms_norm import rms_norm
from osim_kernels.rope import rope


class RMSNorm(torch.nn.Module):
    """RMS norm that sequence parallelism may use: megatron-core all-reduces the gradient of marked weights."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.empty(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)


class PackedCoreAttention(MegatronModule):
    """Rotary embedding by document position, then packed causal attention; keys of the whole row under CP.

    Rotating here rather than in GPTModel keeps megatron-core's per-document RoPE loop, and its requirement that
    every document be padded to twice the context-parallel size, out of the path.
    """

    def __init__(self, config: TransformerConfig, layer_number: int, attn_mask_type, attention_type, **_) -> None:
        super().__init__(config=config)
        self.scale = config.kv_channels**-0.5

    def forward(
        self, query_LHD, key_LGD, value_LGD, attention_mask=None, *, packed_seq_params: PackedRow, **_
    ) -> torch.Tensor:
        row = packed_seq_params
        query_LHD, key_LGD = rope(query_LHD, key_LGD, row.cos_LD, row.sin_LD)
        group = parallel_state.get_context_parallel_group()
        key_TGD, value_TGD = gather_row(key_LGD, group), gather_row(value_LGD, group)
        return packed_attention(query_LHD, key_TGD, value_TGD, row.segments, self.scale)


def use_transformer_engine() -> bool:
    """Transformer Engine serves on CUDA where it is installed."""
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


def transformer_config(model: ModelConfig, layout: LayoutConfig, precision: str) -> TransformerConfig:
    """megatron-core's configuration of this model in this layout. Raises ValueError for FP8 without its engine."""
    if precision == "fp8" and not use_transformer_engine():
        raise ValueError(
            "train.precision: fp8 needs a CUDA device and Transformer Engine (pip install 'osim-core[gpu]'); use bf16"
        )
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    recompute = {
        "none": {},
        # attention keeps no [tokens, tokens] matrix here, so the MLP is what recomputation saves
        "selective": {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
        "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
    }
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_heads,
        num_query_groups=model.num_kv_heads,
        kv_channels=model.head_dim,
        gated_linear_unit=True,
        activation_func=F.silu,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_eps,
        qk_layernorm=model.qk_norm,
        add_bias_linear=False,
        add_qkv_bias=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        init_method_std=model.init_std,
        perform_initialization=False,
        use_cpu_initialization=not torch.cuda.is_available(),
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        fp8="hybrid" if precision == "fp8" else None,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
        context_parallel_size=layout.context,
        sequence_parallel=layout.sequence_parallel,
        calculate_per_token_loss=True,  # streams are normalised globally before backward: see loss/streams.py
        bias_activation_fusion=torch.cuda.is_available(),
        bias_dropout_fusion=torch.cuda.is_available(),
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,  # the fused head returns its weight gradient the ordinary way
        persist_layer_norm=False,
        batch_p2p_comm=False,  # with PP=2 interleaved, batched p2p silently corrupts gradients (megatron-cpu.md 6.4)
        **recompute[layout.recompute],
    )


def build_model(
    model: ModelConfig, layout: LayoutConfig, precision: str, lora: LoraConfig | None = None
) -> list[GPTModel]:
    """This rank's model chunks (one per virtual pipeline stage), on its device, weights uninitialised.

    lora: adapters on every linear layer, and nothing else trainable. Transformer Engine fuses a norm into two of those
    layers, where an adapter needs the normed input, so such a model takes megatron-core's own layers; with FP8, which
    needs Transformer Engine, that raises ValueError.

    Needs parallel_state (osim_core.parallel.layout.initialize, or a fake group for a dry run).
    """
    config = transformer_config(model, layout, precision)
    chunks = range(layout.virtual_pipeline) if layout.virtual_pipeline > 1 else [None]
    if lora and precision == "fp8":
        raise ValueError("lora: adapters need train.precision bf16 or fp32; FP8 layers have no place for them")
    return [_build_chunk(config, model, vp_stage, lora) for vp_stage in chunks]


def _build_chunk(
    config: TransformerConfig, model: ModelConfig, vp_stage: int | None, lora: LoraConfig | None
) -> GPTModel:
    if use_transformer_engine() and not lora:
        layer, norm = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=model.qk_norm), None
    else:
        layer, norm = get_gpt_layer_local_spec(qk_layernorm=model.qk_norm, normalization="RMSNorm"), RMSNorm
        layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
        if model.qk_norm:
            attention = layer.submodules.self_attention.submodules
            attention.q_layernorm = attention.k_layernorm = RMSNorm
        if lora:
            adapt_spec(layer, lora)
    layer.submodules.self_attention.submodules.core_attention = PackedCoreAttention
    if norm is not None:  # the block would pick Apex's or torch's norm for its last one
        layers = get_num_layers_to_build(config, vp_stage=vp_stage)
        layer = TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=norm)
    stage = {} if vp_stage is None else {"ignore_virtual": False, "vp_stage": vp_stage}
    chunk = GPTModel(
        config=config,
        transformer_layer_spec=layer,
        vocab_size=model.vocab_size,
        max_sequence_length=model.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(**stage),
        post_process=parallel_state.is_pipeline_last_stage(**stage),
        share_embeddings_and_output_weights=model.tied_embeddings,
        position_embedding_type="none",  # PackedCoreAttention rotates by document position
        parallel_output=True,
        vp_stage=vp_stage,
    )
    if lora:
        freeze(chunk)
    return chunk
