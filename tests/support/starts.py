"""A Hugging Face folder to start a run from: a tiny random Qwen3 with a byte-level tokenizer, ready in a second."""

import json
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from osim_core.config import ModelConfig
from osim_core.corpus.render import Renderer
from osim_core.corpus.tokenizer import train
from osim_core.model.hf_config import model_config_to_hf

MODEL = ModelConfig(
    family="qwen3",
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=128,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    vocab_size=260,
    max_position_embeddings=1024,
    rope_theta=10_000.0,
    qk_norm=True,
    tied_embeddings=True,
    init_std=0.05,
)


def random_start(folder: Path, seed: int = 0, model: ModelConfig = MODEL) -> Path:
    """The folder, with weights from the seed, written as transformers does."""
    tokenizer = train(["hello there, how are you?"], folder, vocab_size=model.vocab_size)
    torch.manual_seed(seed)
    Qwen3ForCausalLM(Qwen3Config(**model_config_to_hf(model, "float32"))).save_pretrained(folder)
    stop = Renderer(tokenizer).end_of_turn
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stop, "pad_token_id": stop}))
    return folder
