"""ModelConfig <-> the config.json of a Hugging Face Qwen3 or Llama model."""

import json
from pathlib import Path
from typing import Any

from osim_core.config import ModelConfig

ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}


def model_config_from_hf(folder: Path) -> ModelConfig:
    """Read `folder`/config.json. Raises ValueError naming the file and what is not supported."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json; give a Hugging Face model folder")
    values: dict[str, Any] = json.loads(path.read_text())
    family = values.get("model_type")
    if family not in ARCHITECTURES:
        raise ValueError(f"{path}: model_type {family!r} is not supported; use one of {sorted(ARCHITECTURES)}")
    for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if values.get(key):
            raise ValueError(f"{path}: {key} is not supported")
    rope = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})  # transformers 5, then 4
    theta = rope.pop("rope_theta", values.get("rope_theta", 10_000.0))
    heads = values["num_attention_heads"]
    return ModelConfig(
        family=family,
        num_layers=values["num_hidden_layers"],
        hidden_size=values["hidden_size"],
        ffn_hidden_size=values["intermediate_size"],
        num_heads=heads,
        num_kv_heads=values.get("num_key_value_heads", heads),
        head_dim=values.get("head_dim") or values["hidden_size"] // heads,
        vocab_size=values["vocab_size"],
        max_position_embeddings=values["max_position_embeddings"],
        rope_theta=float(theta),
        rope_scaling=rope if rope.get("rope_type", rope.get("type", "default")) != "default" else None,
        norm_eps=values["rms_norm_eps"],
        qk_norm=family == "qwen3",
        tied_embeddings=values.get("tie_word_embeddings", False),
        init_std=values.get("initializer_range", 0.02),
        from_hf=str(folder),
    )


def model_config_to_hf(model: ModelConfig, dtype: str) -> dict[str, Any]:
    """The config.json of `model`, as transformers 4 and 5 read it."""
    rope = {"rope_type": "default", **(model.rope_scaling or {}), "rope_theta": model.rope_theta}
    return {
        "architectures": [ARCHITECTURES[model.family]],
        "model_type": model.family,
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_position_embeddings,
        "rope_theta": model.rope_theta,
        "rope_parameters": rope,
        "rope_scaling": model.rope_scaling and dict(model.rope_scaling),  # transformers adds keys to what it is given
        "rms_norm_eps": model.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": model.tied_embeddings,
        "initializer_range": model.init_std,
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
    }
