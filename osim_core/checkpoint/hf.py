"""Hugging Face weights <-> megatron-core parameters, in any layout, one tensor at a time.

Each parameter of the model maps to one or more Hugging Face tensors; a rank slices what it holds, so no rank ever
needs the whole model. Fresh weights take the same road: `RandomWeights` draws every Hugging Face tensor from its own
seed, hence initialisation is the same function of the seed for every layout.

Shape suffixes: V vocabulary, D model width, Q query rows (heads x head dim), K key-value rows, F feed-forward width.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from safetensors import safe_open
from safetensors.torch import save_file

from osim_core.config import ModelConfig
from osim_core.model.hf_config import model_config_to_hf

Weights = Callable[[str], torch.Tensor]  # Hugging Face tensor name -> full tensor


def tensor_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in the Hugging Face checkpoint of this model, in file order."""
    d, f, head = model.hidden_size, model.ffn_hidden_size, model.head_dim
    q, k = model.num_heads * head, model.num_kv_heads * head
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (model.vocab_size, d)}
    for index in range(model.num_layers):
        layer = f"model.layers.{index}."
        shapes[layer + "input_layernorm.weight"] = (d,)
        shapes[layer + "self_attn.q_proj.weight"] = (q, d)
        shapes[layer + "self_attn.k_proj.weight"] = (k, d)
        shapes[layer + "self_attn.v_proj.weight"] = (k, d)
        shapes[layer + "self_attn.o_proj.weight"] = (d, q)
        if model.qk_norm:
            shapes[layer + "self_attn.q_norm.weight"] = (head,)
            shapes[layer + "self_attn.k_norm.weight"] = (head,)
        shapes[layer + "post_attention_layernorm.weight"] = (d,)
        shapes[layer + "mlp.gate_proj.weight"] = (f, d)
        shapes[layer + "mlp.up_proj.weight"] = (f, d)
        shapes[layer + "mlp.down_proj.weight"] = (d, f)
    shapes["model.norm.weight"] = (d,)
    if not model.tied_embeddings:
        shapes["lm_head.weight"] = (model.vocab_size, d)
    return shapes


class RandomWeights:
    """Fresh weights: N(0, init_std^2), residual projections scaled by 1/sqrt(2 layers) (GPT-2), norms 1."""

    def __init__(self, model: ModelConfig, seed: int) -> None:
        self.model, self.seed, self.shapes = model, seed, tensor_shapes(model)

    def __call__(self, name: str) -> torch.Tensor:
        shape = self.shapes[name]
        if len(shape) == 1:
            return torch.ones(shape)
        digest = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        std = self.model.init_std / (2 * self.model.num_layers) ** 0.5 if residual else self.model.init_std
        return torch.empty(shape).normal_(0.0, std, generator=generator)


class SafetensorsWeights:
    """The tensors of a Hugging Face folder (one model.safetensors or an index of shards), read lazily.

    Raises ValueError naming the folder, tensor and shapes when the files do not hold exactly `model`.
    """

    def __init__(self, folder: Path, model: ModelConfig) -> None:
        self.files = _tensor_files(folder)
        self.handles: dict[Path, object] = {}
        self.shapes = tensor_shapes(model)
        missing = [name for name in self.shapes if name not in self.files]
        if missing:
            raise ValueError(
                f"{folder}: tensor {missing[0]!r} is missing (and {len(missing) - 1} more); "
                "the folder does not hold this model"
            )
        # a tied model's file may carry its head a second time; anything else unknown would be lost in training
        unknown = [name for name in self.files if name not in self.shapes and name != "lm_head.weight"]
        if unknown:
            raise ValueError(
                f"{folder}: tensor {unknown[0]!r} has no place in a {model.family} model of {model.num_layers} layers"
            )

    def __call__(self, name: str) -> torch.Tensor:
        path = self.files[name]
        if path not in self.handles:
            self.handles[path] = safe_open(path, framework="pt", device="cpu")
        tensor = self.handles[path].get_tensor(name)
        if tuple(tensor.shape) != self.shapes[name]:
            raise ValueError(f"{path}: {name} has shape {tuple(tensor.shape)}, the model expects {self.shapes[name]}")
        return tensor


def _tensor_files(folder: Path) -> dict[str, Path]:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        return {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    if not single.is_file():
        raise ValueError(
            f"{folder}: no model.safetensors and no model.safetensors.index.json; give a Hugging Face "
            "folder with safetensors weights"
        )
    with safe_open(single, framework="pt") as handle:
        return dict.fromkeys(handle.keys(), single)


def _sources(name: str, model: ModelConfig) -> list[str]:
    """The Hugging Face tensors behind a parameter whose layer index is already the global one."""
    fixed = {
        "embedding.word_embeddings.weight": ["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": ["model.norm.weight"],
        "output_layer.weight": ["model.embed_tokens.weight" if model.tied_embeddings else "lm_head.weight"],
    }
    if name in fixed:
        return fixed[name]
    _, _, index, rest = name.split(".", 3)
    inner = {
        "input_layernorm.weight": ["input_layernorm.weight"],
        "self_attention.linear_qkv.layer_norm_weight": ["input_layernorm.weight"],
        "self_attention.linear_qkv.weight": [f"self_attn.{x}_proj.weight" for x in "qkv"],
        "self_attention.linear_proj.weight": ["self_attn.o_proj.weight"],
        "self_attention.q_layernorm.weight": ["self_attn.q_norm.weight"],
        "self_attention.k_layernorm.weight": ["self_attn.k_norm.weight"],
        "pre_mlp_layernorm.weight": ["post_attention_layernorm.weight"],
        "mlp.linear_fc1.layer_norm_weight": ["post_attention_layernorm.weight"],
        "mlp.linear_fc1.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
        "mlp.linear_fc2.weight": ["mlp.down_proj.weight"],
    }
    return [f"model.layers.{index}.{source}" for source in inner[rest]]


def _split_dim(name: str) -> int | None:
    """The dimension tensor parallelism splits, None for replicated parameters."""
    if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        return 1
    if name.endswith(("linear_qkv.weight", "linear_fc1.weight", "word_embeddings.weight", "output_layer.weight")):
        return 0
    return None


def _to_local(name: str, tensors: list[torch.Tensor], model: ModelConfig, rank: int, size: int) -> torch.Tensor:
    """Full Hugging Face tensors -> the slice of the parameter that a tensor-parallel rank holds."""
    if name.endswith("linear_qkv.weight"):  # interleaved by key-value group: its queries, its key, its value
        groups = [t.view(model.num_kv_heads, -1, model.head_dim, model.hidden_size) for t in tensors]
        return torch.cat(groups, dim=1).reshape(-1, model.hidden_size).chunk(size)[rank]
    if name.endswith("linear_fc1.weight"):  # each rank holds its gate rows, then its up rows
        return torch.cat([t.chunk(size)[rank] for t in tensors])
    (tensor,) = tensors
    dim = _split_dim(name)
    return tensor if dim is None else tensor.chunk(size, dim)[rank]


def _from_parts(name: str, parts: list[torch.Tensor], model: ModelConfig) -> list[torch.Tensor]:
    """All ranks' slices of a parameter -> the full Hugging Face tensors."""
    if name.endswith("linear_qkv.weight"):
        ratio = model.num_heads // model.num_kv_heads
        fused = torch.cat(parts).view(model.num_kv_heads, ratio + 2, model.head_dim, model.hidden_size)
        return [x.reshape(-1, model.hidden_size) for x in fused.split([ratio, 1, 1], dim=1)]
    if name.endswith("linear_fc1.weight"):
        gates, ups = zip(*(part.chunk(2) for part in parts), strict=True)
        return [torch.cat(gates), torch.cat(ups)]
    dim = _split_dim(name)
    return [parts[0] if dim is None else torch.cat(parts, dim)]


def unwrap(chunk: torch.nn.Module) -> GPTModel:
    """The GPTModel inside DistributedDataParallel and Float16Module."""
    while not isinstance(chunk, GPTModel):
        chunk = chunk.module
    return chunk


def is_adapter(name: str) -> bool:
    """Whether a parameter is a low-rank adapter's (model/lora.py): a Hugging Face model holds it merged."""
    return ".lora_" in name


def named_parameters(chunks: list[torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Parameters of this rank, adapters too, with global layer indices in their names."""
    for chunk in map(unwrap, chunks):
        numbers = {str(i): str(layer.layer_number - 1) for i, layer in enumerate(chunk.decoder.layers)}
        for name, parameter in chunk.named_parameters():
            parts = name.split(".")
            if parts[:2] == ["decoder", "layers"]:
                parts[2] = numbers[parts[2]]
            yield ".".join(parts), parameter


@torch.no_grad()
def load_weights(chunks: list[torch.nn.Module], weights: Weights, model: ModelConfig) -> None:
    """Fill this rank's parameters, adapters aside, from `weights`, casting to the model's dtype. No communication."""
    rank = parallel_state.get_tensor_model_parallel_rank()
    size = parallel_state.get_tensor_model_parallel_world_size()
    for name, parameter in named_parameters(chunks):
        if is_adapter(name):
            continue
        local = _to_local(name, [weights(source) for source in _sources(name, model)], model, rank, size)
        assert local.shape == parameter.shape, (name, local.shape, parameter.shape)
        parameter.copy_(local)


@torch.no_grad()
def full_tensors(
    chunks: list[torch.nn.Module],
    model: ModelConfig,
    value: Callable[[torch.nn.Parameter], torch.Tensor] = torch.nn.Parameter.detach,
) -> Iterator[tuple[str, torch.Tensor]]:
    """(Hugging Face name, full CPU tensor) of this pipeline stage's parameters; collective over tensor parallel.

    `value` maps a parameter to the tensor wanted of it (its gradient, say; model/lora.py's `merged`). Only
    tensor-parallel rank 0 receives anything; the others iterate over nothing but take part in the gathers, so every
    rank must exhaust the iterator.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    size, first = group.size(), group.rank() == 0
    for name, parameter in named_parameters(chunks):
        if is_adapter(name) or (name == "output_layer.weight" and model.tied_embeddings):
            continue  # part of its base weight; the last stage's copy of the embedding
        local = value(parameter).contiguous()
        parts = [local]
        if size > 1 and _split_dim(name) is not None:
            parts = [torch.empty_like(local) for _ in range(size)]
            dist.all_gather(parts, local, group=group)
        if first:
            full = _from_parts(name, [part.cpu() for part in parts], model)
            yield from zip(_sources(name, model), full, strict=True)


def save_hf(chunks: list[torch.nn.Module], model: ModelConfig, folder: Path, shard_bytes: int = 5 << 30) -> None:
    """Write a Hugging Face folder (config.json, safetensors shards, index) from any layout. Collective.

    Each pipeline stage writes its own layers, so no rank holds the model. The folder appears under its name only
    when every file is complete. The tokenizer's files are the caller's to add. Raises ValueError if it exists.
    """
    stage = parallel_state.get_pipeline_model_parallel_rank()
    replica = parallel_state.get_data_parallel_rank(with_context_parallel=True)
    partial = folder.with_name(f".{folder.name}.partial")
    if folder.exists():
        raise ValueError(f"{folder}: already exists; choose another name or remove it")
    dist.barrier()  # every rank has looked
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)  # of an interrupted export
        partial.mkdir(parents=True)
    dist.barrier()
    files: dict[str, list[str]] = {}
    pending: dict[str, torch.Tensor] = {}

    def flush() -> None:
        if pending:
            file = f"stage{stage:03d}-{len(files):03d}.safetensors"
            save_file(pending, partial / file, metadata={"format": "pt"})
            files[file] = list(pending)
            pending.clear()

    for name, tensor in full_tensors(chunks, model):
        if replica != 0:
            continue
        if sum(t.nbytes for t in pending.values()) + tensor.nbytes > shard_bytes:
            flush()
        pending[name] = tensor.contiguous()
    flush()
    gathered: list[dict[str, list[str]]] = [{}] * dist.get_world_size()
    dist.all_gather_object(gathered, files)
    if dist.get_rank() == 0:
        _finish_export(partial, {f: names for part in gathered for f, names in part.items()}, model)
        partial.rename(folder)
    dist.barrier()


def _finish_export(folder: Path, files: dict[str, list[str]], model: ModelConfig) -> None:
    """Give the shards their final names and write the index and config.json."""
    weight_map = {}
    for number, file in enumerate(sorted(files), start=1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        (folder / file).rename(folder / name)
        weight_map.update(dict.fromkeys(files[file], name))
    assert weight_map.keys() == tensor_shapes(model).keys()
    with safe_open(folder / weight_map["model.norm.weight"], framework="pt") as handle:
        dtype = handle.get_tensor("model.norm.weight").dtype
    if len(files) > 1:
        size = sum(math.prod(shape) for shape in tensor_shapes(model).values()) * dtype.itemsize
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    name = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(model_config_to_hf(model, name), indent=1))
