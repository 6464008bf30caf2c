"""Hugging Face folder -> our parameters in any layout -> Hugging Face folder loses no bit, and both models agree.

The folders come from transformers' own writer and go back into transformers' own reader.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from osim_core.batch import PackedBatch
from osim_core.config import LayoutConfig, ModelConfig
from osim_core.model.hf_config import model_config_from_hf, model_config_to_hf
from tests.checkpoint.cases import interrupted_export, logprobs, refusal, round_trip
from tests.support.models import TINY_QWEN3, random_rows

TINY_LLAMA = ModelConfig(
    family="llama",
    num_layers=4,
    hidden_size=96,  # not heads x head_dim
    ffn_hidden_size=160,
    num_heads=12,
    num_kv_heads=4,
    head_dim=16,
    vocab_size=96,
    max_position_embeddings=512,
    rope_theta=10_000.0,
    rope_scaling={
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    norm_eps=1e-5,
    tied_embeddings=True,
    init_std=0.08,
)
MODELS = {
    "qwen3": (TINY_QWEN3, Qwen3Config, Qwen3ForCausalLM),
    "llama": (TINY_LLAMA, LlamaConfig, LlamaForCausalLM),
}
LAYOUTS = {
    "tp1": (1, LayoutConfig()),
    "tp2": (2, LayoutConfig(tensor=2)),
    "pp2": (2, LayoutConfig(pipeline=2)),
    "pp2-virtual2": (2, LayoutConfig(pipeline=2, virtual_pipeline=2)),
    "tp2-pp2": (4, LayoutConfig(tensor=2, pipeline=2, sequence_parallel=True)),
}
WHOLE = 1 << 30


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Each tiny model with random weights, norms included, as transformers writes it."""
    written = {}
    for name, (config, config_class, model_class) in MODELS.items():
        torch.manual_seed(11)
        model = model_class(config_class(**model_config_to_hf(config, "float32")))
        for parameter in model.parameters():
            if parameter.dim() == 1:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        written[name] = tmp_path_factory.mktemp("hf") / name
        model.save_pretrained(written[name])
    return written


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_same_tensors(mine: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> None:
    assert mine.keys() == truth.keys()
    for name, tensor in truth.items():
        assert mine[name].dtype == tensor.dtype and torch.equal(mine[name], tensor), name


def by_transformers(folder: Path, rows: list[PackedBatch]) -> list[torch.Tensor]:
    """log p(label) of every token, each document alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    result = []
    for row in rows:
        parts = []
        for start, stop in zip(row.cu_seqlens[:-1].tolist(), row.cu_seqlens[1:].tolist(), strict=True):
            with torch.no_grad():
                logits = model(row.tokens_T[None, start:stop]).logits[0]
            parts.append(logits.log_softmax(-1).gather(1, row.labels_T[start:stop, None])[:, 0])
        result.append(torch.cat(parts))
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_round_trip_is_bit_exact(workers, folders, tmp_path, model, layout):
    size, config = LAYOUTS[layout]
    out = tmp_path / "out"
    workers(size).run(round_trip, source=folders[model], out=out, layout=config, shard_bytes=60_000)
    assert_same_tensors(tensors(out), tensors(folders[model]))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(shards) > 3 and set(index["weight_map"].values()) == set(shards)
    assert shards[-1] == f"model-{len(shards):05d}-of-{len(shards):05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors(out).values())
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("layout", ["tp1", "tp2"])
@pytest.mark.parametrize("model", MODELS)
def test_transformers_loads_the_export_and_agrees_token_by_token(workers, folders, tmp_path, model, layout):
    size, config = LAYOUTS[layout]
    out = tmp_path / "out"
    workers(size).run(round_trip, source=folders[model], out=out, layout=config, shard_bytes=WHOLE)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    rows = random_rows(2, 384, 96, max_document=250)  # documents beyond the positions that rope_scaling starts from
    results = workers(size).run(logprobs, source=out, layout=config, rows=rows)
    for result in results:
        for mine, truth in zip(result, by_transformers(out, rows), strict=True):
            torch.testing.assert_close(mine, truth, atol=2e-5, rtol=0)


@pytest.mark.parametrize("model", MODELS)
def test_config_survives_transformers_and_our_export(workers, folders, tmp_path, model):
    workers(1).run(round_trip, source=folders[model], out=tmp_path / "out", layout=LayoutConfig(), shard_bytes=WHOLE)
    for folder in (folders[model], tmp_path / "out"):
        read = model_config_from_hf(folder)
        assert read.from_hf == str(folder)
        assert {**vars(read), "from_hf": None} == vars(MODELS[model][0])


def test_bf16_weights_keep_their_bits(workers, folders, tmp_path):
    source, out = tmp_path / "bf16", tmp_path / "out"
    AutoModelForCausalLM.from_pretrained(folders["qwen3"], dtype=torch.bfloat16).save_pretrained(source)
    workers(2).run(
        round_trip, source=source, out=out, layout=LayoutConfig(tensor=2), shard_bytes=WHOLE, precision="bf16"
    )
    assert_same_tensors(tensors(out), tensors(source))
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def changed(folder: Path, copy: Path, change) -> Path:
    """A copy of a Hugging Face folder after `change(tensors)`."""
    copy.mkdir()
    values = tensors(folder)
    change(values)
    save_file(values, copy / "model.safetensors")
    (copy / "config.json").write_text((folder / "config.json").read_text())
    return copy


NORM = "model.layers.2.self_attn.q_norm.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values.pop(NORM), [NORM, "missing"]),
        (lambda values: values.update({NORM: torch.ones(8)}), [NORM, "(8,)", "(16,)"]),
        (lambda values: values.update(extra=torch.ones(8)), ["'extra'", "no place"]),
    ],
    ids=["missing", "shape", "unknown"],
)
def test_a_folder_of_another_model_is_one_clear_line(workers, folders, tmp_path, change, words):
    source = changed(folders["qwen3"], tmp_path / "source", change)
    arguments = {"source": source, "out": tmp_path / "out", "layout": LayoutConfig(), "shard_bytes": WHOLE}
    (message,) = workers(1).run(refusal, call=round_trip, **arguments)
    assert "\n" not in message and str(source) in message and all(word in message for word in words), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("model_type", "mamba", "model_type 'mamba' is not supported"), ("attention_bias", True, "attention_bias")],
)
def test_an_unsupported_config_is_one_clear_line(folders, tmp_path, key, value, words):
    values = json.loads((folders["llama"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, key: value}))
    with pytest.raises(ValueError, match=words):
        model_config_from_hf(tmp_path)


def test_an_existing_folder_is_never_written_into(workers, folders, tmp_path):
    (tmp_path / "out").mkdir()
    arguments = {"source": folders["qwen3"], "out": tmp_path / "out", "shard_bytes": WHOLE}
    messages = workers(2).run(refusal, call=round_trip, layout=LayoutConfig(tensor=2), **arguments)
    assert all("already exists" in message for message in messages)  # every rank, or the others would wait for ever
    assert not list((tmp_path / "out").iterdir())


def test_an_interrupted_export_is_invisible_and_leaves_nothing_to_the_next(workers, folders, tmp_path):
    out = tmp_path / "out"
    assert workers(1).run(interrupted_export, source=folders["qwen3"], out=out) == [False]
    (partial,) = tmp_path.iterdir()
    assert partial.name == ".out.partial"
    save_file({"stray": torch.ones(2)}, partial / "stage007-000.safetensors")
    workers(1).run(round_trip, source=folders["qwen3"], out=out, layout=LayoutConfig(), shard_bytes=60_000)
    assert_same_tensors(tensors(out), tensors(folders["qwen3"]))
