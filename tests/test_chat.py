"""From a Hugging Face folder to a checkpoint, back out, and into a conversation: the commands a person types."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from osim_core.corpus.tokenizer import train
from osim_core.model.hf_config import model_config_to_hf
from tests.support.models import TINY_QWEN3


def command(module: str, *arguments: str | Path, said: str = "") -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", f"osim_core.{module}", *map(str, arguments)]
    return subprocess.run(line, input=said, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run directory with one checkpoint, imported from `hf` beside it, and its tokenizer."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = train(["yes no maybe, how are you? fine."] * 20, folder / "run" / "tokenizer", vocab_size=280)
    values = {**model_config_to_hf(TINY_QWEN3, "float32"), "vocab_size": tokenizer.vocab_size}
    torch.manual_seed(3)
    Qwen3ForCausalLM(Qwen3Config(**values)).save_pretrained(folder / "hf")
    checkpoint = folder / "run" / "checkpoints" / "step-00000000"
    done = command("checkpoint.import", folder / "hf", checkpoint, "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_import_then_export_gives_the_same_tensors(run, tmp_path):
    done = command("checkpoint.export", run, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    mine, truth = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", run.parent / "hf"))
    assert mine.keys() == truth.keys() and all(torch.equal(mine[name], truth[name]) for name in truth)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (run / "tokenizer" / "tokenizer.json").read_bytes()


def test_chat_answers_every_line(run):
    options = ["--temperature", "0", "--max-new-tokens", "8"]
    done = command("chat", run, *options, said="how are you?\n\n/reset\n/system Be brief.\nyes or no?\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model: ") == 2
    replies = [part.split("you:")[0].strip() for part in done.stdout.split("model: ")[1:]]
    assert all(replies)
    assert (run / "export" / "step-00000000" / "model.safetensors").is_file()


def test_a_run_that_cannot_be_exported_ends_in_one_line(run, tmp_path):
    assert command("chat", tmp_path).stderr == (
        f"error: {tmp_path}: no checkpoint; give a run directory or a folder checkpoints/step-*\n"
    )
    broken = tmp_path / "checkpoints" / "step-00000001"
    broken.mkdir(parents=True)
    (broken / "osim.json").write_text('{"format": 99}')
    done = command("chat", tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: {broken.resolve()}: checkpoint format 99, this version reads 1\n"
