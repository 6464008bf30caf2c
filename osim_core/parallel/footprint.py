"""What one rank of a layout holds and sends: parameters, memory and communication, as plain arithmetic.

`dry_run.py` checks the parameter counts against the real modules; the rest are formulas, each stated where
it is computed. Bytes are for the CUDA path (fused SwiGLU and norms, packed attention that saves a
log-sum-exp per query and head, the fused loss head that never holds logits).

Letters in comments: t tensor, p pipeline, v virtual pipeline, c context, d data parallel; l tokens of a row
on one rank (row length / c); D model width, F MLP width, H query heads, G key-value heads, E head dim; a
bytes per value.
"""

from dataclasses import dataclass

import torch

from osim_core.config import LayoutConfig, MidtrainConfig
from osim_core.observe.throughput import weight_counts
from osim_kernels.fused_linear_logprob.triton import workspace_bytes

GIB = 2**30
# CUDA context, NCCL buffers, cuBLAS workspaces, fragmentation: a round allowance, not a measurement
RESERVE_BYTES = 5 * GIB


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank at the peak of a step."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    workspace: float  # what one layer or the loss head needs only while it runs
    reserve: float = RESERVE_BYTES

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def stage_layers(layout: LayoutConfig, num_layers: int) -> int:
    """Layers on a pipeline rank, over all its chunks."""
    return num_layers // layout.pipeline


def stage_parameters(config: MidtrainConfig, stage: int) -> tuple[int, int]:
    """(elements, elements of matrices) of one rank of a pipeline stage.

    Matrices, embedding and head are split over tensor parallel, norms are copied. A tied embedding lives on
    the first and on the last stage, once where these are the same.
    """
    counts, layout = weight_counts(config.model), config.layout
    first, last = stage == 0, stage == layout.pipeline - 1
    layers = stage_layers(layout, config.model.num_layers)
    table = counts.embedding // layout.tensor
    own_head = last and not (config.model.tied_embeddings and first)
    matrices = layers * counts.layer_matrices // layout.tensor
    norms = layers * counts.layer_norms + (counts.final_norm if last else 0)
    tables = table * (int(first) + int(own_head))
    return matrices + tables + norms, matrices


def chunks_in_flight(layout: LayoutConfig, stage: int, micro_batches: int) -> int:
    """Forward passes of one model chunk whose activations a stage holds at once.

    1F1B: the warm-up of p - stage - 1 micro-batches and the current one. Interleaved: megatron-core's
    warm-up of 2 (p - stage - 1) + (v - 1) p chunk passes, and the current one (Narayanan et al. 2021, arXiv
    2104.04473).
    """
    p, v = layout.pipeline, layout.virtual_pipeline
    warmup = p - stage - 1 if v == 1 else 2 * (p - stage - 1) + (v - 1) * p
    return min(warmup + 1, micro_batches * v)


def layer_activations(config: MidtrainConfig, recomputed: frozenset[str]) -> float:
    """Bytes that one layer saves for the backward pass of one micro-batch (one packed row).

    Korthikanti et al. 2022 (arXiv 2205.05198), section 4, redone for RMSNorm, SwiGLU, GQA and flash
    attention. recomputed: megatron-core's module names ("core_attn", "layernorm", "mlp"), or "full".
    """
    model, layout = config.model, config.layout
    t, c = layout.tensor, layout.context
    a = value_bytes(config)
    l = config.data.sequence_length // c
    D, F, H, G, E = (
        model.hidden_size,
        model.ffn_hidden_size,
        model.num_heads,
        model.num_kv_heads,
        model.head_dim,
    )
    sharded = t if layout.sequence_parallel else 1
    if "full" in recomputed:
        return l * D / sharded * a  # the layer's input
    norm_inputs = 2 * D / sharded
    # norm outputs are the inputs of the QKV and of the gate-up projection
    norm_outputs = 0 if "layernorm" in recomputed else 2 * D / sharded
    # the QKV projection's output (the value is a view of it), attention's output, the query that qk-norm reads
    attention = (H + 2 * G) * E + H * E + (H * E if model.qk_norm else 0)
    if "core_attn" not in recomputed:
        attention += (H + G) * E  # rotated query and key
        if c > 1:
            attention += 2 * G * E * (c + 0.5)  # keys and values of the whole row, cut for two zigzag chunks
    elif model.qk_norm:
        attention += (H + G) * E  # normed query and key, the inputs of the recomputation
    log_sums = 0 if "core_attn" in recomputed else 4 * H / t
    mlp = 0 if "mlp" in recomputed else 3 * F / t  # gate and up, and their product
    return l * ((norm_inputs + norm_outputs + attention / t + mlp) * a + log_sums)


def value_bytes(config: MidtrainConfig) -> int:
    """Bytes of one activation or parameter. FP8 keeps both in bf16 outside its matrix products."""
    return 4 if config.train.precision == "fp32" else 2


def memory(
    config: MidtrainConfig, data_parallel: int, stage: int, recomputed: frozenset[str], micro_batches: int
) -> Memory:
    """Peak memory of one rank of a pipeline stage.

    Weights: bf16 2 bytes, fp32 4; FP8 adds Transformer Engine's cached casts, one byte each way. Gradients:
    an fp32 buffer, never sharded. Optimizer: two fp32 moments, and an fp32 master where weights are not
    fp32, divided over the d x c ranks by the distributed optimizer.
    """
    model, layout = config.model, config.layout
    elements, matrices = stage_parameters(config, stage)
    a = value_bytes(config)
    l, D = config.data.sequence_length // layout.context, model.hidden_size
    sharded = layout.tensor if layout.sequence_parallel else 1
    shards = data_parallel * layout.context if layout.distributed_optimizer else 1
    state = 8 if config.train.precision == "fp32" else 12
    layers_per_chunk = model.num_layers // (layout.pipeline * layout.virtual_pipeline)
    passes = chunks_in_flight(layout, stage, micro_batches)
    saved = layers_per_chunk * layer_activations(config, recomputed)
    if layout.pipeline > 1:
        saved += l * D / sharded * a  # the chunk's output, kept until the next stage's gradient arrives
    # a layer's backward: gradients of gate, up and product; the gathered input and gradient of a projection
    layer_work = l * (3 * model.ffn_hidden_size / layout.tensor + 2 * D) * a
    if {"full", "mlp"} & recomputed:
        layer_work += layer_activations(config, frozenset())
    head_work = 0.0
    if stage == layout.pipeline - 1:  # hidden rows, the head's gradient, and what the kernel works with
        rows = model.vocab_size // layout.tensor
        dtype = torch.float32 if config.train.precision == "fp32" else torch.bfloat16
        head_work = l * D * a + rows * D * a + max(workspace_bytes(l, rows, D, dtype).values())
    return Memory(
        weights=elements * a + (2 * matrices if config.train.precision == "fp8" else 0),
        gradients=4 * elements,
        optimizer=state * elements / shards,
        activations=passes * saved,
        workspace=max(layer_work, head_work),
    )


def communication(
    config: MidtrainConfig, data_parallel: int, stage: int, recomputed: frozenset[str], micro_batches: int
) -> dict[str, float]:
    """Bytes that one rank of a pipeline stage sends in one optimizer step, by kind.

    Ring algorithms: an all-gather or reduce-scatter of n bytes over k ranks sends (k-1)/k n per rank, an
    all-reduce twice that. Scalars and [tokens]-sized reductions (loss, norms) are left out.
    """
    model, layout = config.model, config.layout
    t, p, v, c = layout.tensor, layout.pipeline, layout.virtual_pipeline, layout.context
    a, m = value_bytes(config), micro_batches
    l, D = config.data.sequence_length // c, model.hidden_size
    layers = stage_layers(layout, model.num_layers)
    first, last = stage == 0, stage == p - 1
    sharded = t if layout.sequence_parallel else 1
    hidden = l * D * a
    elements, _ = stage_parameters(config, stage)
    sent = {}
    if t > 1:
        # Per layer: in and out of attention and MLP, forward and backward. Sequence parallelism splits each
        # all-reduce into its halves and gathers the two projection inputs again for their weight gradients.
        ring = (t - 1) / t * hidden
        per_layer = 10 if layout.sequence_parallel else 8
        per_layer += 4 if "full" in recomputed else (2 if "mlp" in recomputed else 0)
        ends = (1 if layout.sequence_parallel else 2) * int(first)  # embedding, forward
        ends += 2 * int(last)  # head: gather and scatter, or one all-reduce of the gradient
        sent["tensor"] = m * ring * (layers * per_layer + ends)
    if p > 1:
        forward, backward = v - int(last), v - int(first)
        sent["pipeline"] = m * (forward + backward) * hidden / sharded
    if c > 1:
        keys_values = 2 * config.data.sequence_length * model.num_kv_heads * model.head_dim // t * a
        rounds = 3 if {"full", "core_attn"} & recomputed else 2  # gather, (again), scatter the gradients
        sent["context"] = m * layers * rounds * (c - 1) / c * keys_values
    replicas = data_parallel * c
    if replicas > 1:
        ring = (replicas - 1) / replicas * elements
        sent["data"] = ring * (4 + a) if layout.distributed_optimizer else 2 * ring * 4
    if model.tied_embeddings and p > 1 and (first or last):
        sent["tied embedding"] = 4 * model.vocab_size * D / t
    return sent


def bubble_share(layout: LayoutConfig, micro_batches: int) -> float:
    """Share of a step in which a pipeline rank waits: (p - 1) / (v m + p - 1) (Narayanan et al. 2021)."""
    idle = layout.pipeline - 1
    return idle / (layout.virtual_pipeline * micro_batches + idle)
