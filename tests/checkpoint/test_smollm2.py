"""A real model, SmolLM2-135M-Instruct: unpacked from its package, equal to transformers, fine-tuned, exported."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs import SMOLLM2_135M
from osim_core.batch import PackedBatch
from osim_core.model.hf_config import model_config_from_hf
from osim_core.model.packaged import smollm2_gguf, unpack_smollm2
from tests.checkpoint.cases import logits

ROOT = Path(__file__).parents[2]
TEXTS = [
    "Hello, world! It's 2024; 3.14159 and 1,000,000.",
    "def f(x):\n    return x**2  # note\n\n\tif x >= 10:\n\t\tpass\r\n",
    "emoji 😀🎉👩‍👩‍👧 and café naïve Ünïcödé 你好 مرحبا Привет",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><file_sep>",
    "  leading   spaces\r\n\r\ntrailing  ",
    "I'd've thought they'll say: \"no\" -- (maybe?) [x] {y} <z> a_b c/d e\\f g@h #i $5.00 100%",
]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Iterator[tuple[Path, float]]:
    """The folder, unpacked anew, and the processor seconds that took. Removed at the end, for pytest keeps three."""
    cache = tmp_path_factory.mktemp("cache")
    start = time.process_time()
    folder = unpack_smollm2(cache)
    yield folder, time.process_time() - start
    shutil.rmtree(cache)


@pytest.fixture(scope="module")
def smollm2(unpacked) -> Path:
    return unpacked[0]


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return AutoTokenizer.from_pretrained(smollm2)


def test_unpacks_in_seconds_and_once(unpacked):
    folder, seconds = unpacked
    assert seconds < 15
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert unpack_smollm2(folder.parents[1]) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert not list(folder.parent.glob(".*"))


def test_config_is_the_recipes(smollm2):
    read = model_config_from_hf(smollm2)
    assert {**vars(read), "from_hf": None} == {**vars(SMOLLM2_135M), "from_hf": None}


def test_text_survives_the_tokenizer(tokenizer):
    for text in [*TEXTS, "a  2 b   33 ½ ² ٣"]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  2024<|im_end|>").input_ids) == [
        *("a", "ĠĠ", "2", "0", "2", "4"),  # the model saw digits one by one, and the spaces before them apart
        "<|im_end|>",
    ]


def two_documents(tokenizer) -> PackedBatch:
    """One packed row: two chats, back to back."""
    chats = [
        [
            {"role": "user", "content": "What is the capital of France, and how many people live there?"},
            {"role": "assistant", "content": "Paris. About 2.1 million people live in the city itself."},
        ],
        [
            {"role": "system", "content": "Two strangers chat online."},
            {"role": "user", "content": "hey :) how was your weekend? 🎉"},
            {"role": "assistant", "content": "Long, but good! I went hiking with my sister. You?"},
            {"role": "user", "content": "Mostly laundry..."},
        ],
    ]
    documents = [
        torch.tensor(tokenizer(tokenizer.apply_chat_template(chat, tokenize=False)).input_ids) for chat in chats
    ]
    lengths = [len(document) for document in documents]
    tokens_T = torch.cat(documents)
    return PackedBatch(
        tokens_T=tokens_T,
        labels_T=torch.zeros_like(tokens_T),
        positions_T=torch.cat([torch.arange(n) for n in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        sources_S=torch.zeros(2, dtype=torch.int32),
        documents_S=torch.arange(2),
    )


def test_packed_logits_equal_transformers_on_each_document_alone(workers, smollm2, tokenizer):
    row = two_documents(tokenizer)
    (mine,) = workers(1).run(logits, source=smollm2, row=row)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    border = row.cu_seqlens[1].item()
    with torch.no_grad():
        truth = torch.cat([model(part[None]).logits[0] for part in (row.tokens_T[:border], row.tokens_T[border:])])
    assert mine.shape == (row.num_tokens, 49_152)
    difference = (mine - truth).abs().max().item()
    between = (mine.log_softmax(-1) - truth.log_softmax(-1)).abs().max().item()
    print(f"SmolLM2-135M, {row.num_tokens} tokens: max |d logit| {difference:.2e}, max |d log-prob| {between:.2e}")
    assert difference < 1e-3 and between < 1e-3
    # it is the model we think: after "The capital of France is" it says Paris
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    assert "Paris" in tokenizer.decode(model.generate(**prompt, max_new_tokens=8, do_sample=False)[0])


@pytest.mark.slow
def test_tokenizer_and_weights_are_those_transformers_converts(smollm2, tokenizer):
    """transformers' own conversion of the GGUF takes one to two minutes. It ignores the file's digit splitting, so
    the texts here have no two spaces before a digit."""
    gguf = smollm2_gguf()
    theirs = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for text in TEXTS:
        assert tokenizer(text).input_ids == theirs(text).input_ids, text
    assert tokenizer.get_vocab() == theirs.get_vocab()
    assert tokenizer.chat_template == theirs.chat_template
    assert tokenizer.special_tokens_map == theirs.special_tokens_map
    weights = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).state_dict()
    for name, weight in AutoModelForCausalLM.from_pretrained(smollm2).state_dict().items():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.slow
def test_fine_tunes_exports_and_transformers_generates(tmp_path):
    recipe = [sys.executable, str(ROOT / "recipes" / "midtrain.py"), "smollm2-135m-cpu", "--runs", str(tmp_path)]
    subprocess.run(recipe, cwd=ROOT, check=True, timeout=1500)
    run = tmp_path / "midtrain" / "latest"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    training = [row["train/loss"] for row in rows if "train/loss" in row]
    held_out = [row["val/loss"] for row in rows if "val/loss" in row]
    assert len(training) == 20 and sum(training[-5:]) < sum(training[:5])
    assert held_out[-1] < held_out[0]
    export = [sys.executable, "-m", "osim_core.checkpoint.export", str(run), str(tmp_path / "out")]
    subprocess.run(export, cwd=ROOT, check=True, timeout=300)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hey, how are you?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    generated = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    assert tokenizer.decode(generated[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    shutil.rmtree(tmp_path)
