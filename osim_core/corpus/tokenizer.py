"""Tokenizers: a Hugging Face tokenizer.json (or its folder), a sentencepiece .model, or one trained on the data.

All three give the same small interface, `Tokenizer`, to render.py. Text is never parsed for special tokens: a user
who types "<|im_end|>" gets ordinary tokens and cannot end a turn. Only `encode_markup`, which sees nothing but the
chat format itself, produces special tokens.

    tokenizer = load("data/tokenizers/...")   # or a tokenizer.json, or a .model
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece
import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from osim_core.corpus.durable import write_durably

TURN_START, TURN_END, TEXT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SENTENCEPIECE_FILE = "tokenizer.model"  # as Hugging Face folders call it


class Tokenizer(Protocol):
    """What rendering, sampling and export need.

    vocab_size     largest id + 1: the embedding must have at least this many rows
    specials       special token -> id
    variables      bos_token, eos_token and the like, as chat templates refer to them
    end_of_text    id that ends a document in generation, or None
    chat_template  Jinja source, or None
    fingerprint    hex sha256 of all that decides its output
    where          its file or folder, as messages name it
    """

    vocab_size: int
    specials: dict[str, int]
    variables: dict[str, str]
    end_of_text: int | None
    chat_template: str | None
    fingerprint: str
    where: Path

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 ids of each text; what looks like a special token is text."""
        ...

    def encode_markup(self, text: str) -> np.ndarray:
        """int32 ids of `text`, special tokens recognised."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`, special tokens included."""
        ...

    def save(self, folder: Path) -> None:
        """Copy its files into `folder`, from where `load` reads them again."""
        ...


class HuggingFaceTokenizer:
    """`Tokenizer` over a tokenizer.json; batches are encoded by Rust threads."""

    def __init__(self, folder: Path) -> None:
        self.where = folder
        path = folder / "tokenizer.json"
        config = _read_json(folder / "tokenizer_config.json")
        try:
            self._markup = tokenizers.Tokenizer.from_file(str(path))
            self._plain = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception, for a broken file as for a missing one
            raise ValueError(f"{path}: not a readable tokenizer.json ({error})") from error
        self._plain.encode_special_tokens = True  # True means: as text
        for tokenizer in (self._markup, self._plain):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self.vocab_size = max(self._markup.get_vocab(with_added_tokens=True).values()) + 1
        added = self._markup.get_added_tokens_decoder()
        self.specials = {token.content: number for number, token in added.items() if token.special}
        self.variables = {
            name: value if isinstance(value, str) else value["content"]
            for name, value in config.items()
            if name.endswith("_token") and isinstance(value, str | dict)
        }
        self.end_of_text = self.specials.get(TEXT_END, self.specials.get(self.variables.get("eos_token", "")))
        self.chat_template = _chat_template(folder, config)
        self.fingerprint = _digest(path.read_bytes(), self.chat_template, self.variables)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def encode_markup(self, text: str) -> np.ndarray:
        return np.array(self._markup.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._markup.decode([int(i) for i in ids], skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (self.where / name).is_file():
                _copy(self.where / name, folder / name)


class SentencePieceTokenizer:
    """`Tokenizer` over a sentencepiece .model whose vocabulary holds the ChatML tokens.

    Raises ValueError for a model that cannot return the text it was given, such as one that folds newlines into
    spaces: what was sampled and what was trained on would then differ.
    """

    def __init__(self, path: Path) -> None:
        self.where = path
        proto = sentencepiece_model_pb2.ModelProto()
        try:
            proto.ParseFromString(path.read_bytes())
            # Turns are encoded one by one, so none of them may get the space that starts a text.
            proto.normalizer_spec.add_dummy_prefix = False
            proto.normalizer_spec.remove_extra_whitespaces = False
            self._model = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        except (DecodeError, RuntimeError) as error:
            raise ValueError(f"{path}: not a readable sentencepiece model ({error})") from error
        self.vocab_size = self._model.get_piece_size()
        self.specials = {}
        for token in (TURN_START, TURN_END, TEXT_END):
            number = self._model.piece_to_id(token)
            if number != self._model.unk_id():
                self.specials[token] = number
        if missing := {TURN_START, TURN_END} - self.specials.keys():
            raise ValueError(
                f"{path}: no piece {' or '.join(sorted(missing))}; train the model with "
                f"--control_symbols={TURN_START},{TURN_END} or use a tokenizer.json"
            )
        self._special = re.compile("|".join(re.escape(token) for token in self.specials))
        self.variables = {"eos_token": TURN_END}
        eos = self._model.eos_id()
        self.end_of_text = self.specials.get(TEXT_END, eos if eos >= 0 else None)
        self.chat_template = CHATML_TEMPLATE
        self.fingerprint = _digest(path.read_bytes(), self.chat_template, self.variables)
        probe = "Two  spaces,\na new line, caf\u00e9 \u732b"
        if self.decode(self.encode_batch([probe])[0]) != probe:
            raise ValueError(
                f"{path}: decoding does not give back what was encoded; train the model with "
                "--normalization_rule_name=identity --byte_fallback"
            )

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded: list[np.ndarray] = []
        for text in texts:
            # A user-defined piece matches anywhere, so look-alikes are cut after their first character.
            parts = self._special.sub(lambda match: f"{match[0][0]}\0{match[0][1:]}", text).split("\0")
            parts = parts if self._special.search(text) else [text]
            ids = [number for part in parts for number in self._model.encode(part)]
            encoded.append(np.array(ids, np.int32))
        return encoded

    def encode_markup(self, text: str) -> np.ndarray:
        ids: list[int] = []
        cut = 0
        for match in self._special.finditer(text):
            ids += [*self._model.encode(text[cut : match.start()]), self.specials[match[0]]]
            cut = match.end()
        return np.array(ids + self._model.encode(text[cut:]), np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        names = {number: token for token, number in self.specials.items()}
        text, run = "", []
        for number in (int(i) for i in ids):
            if number in names:
                text, run = text + self._model.decode(run) + names[number], []
            else:
                run.append(number)
        return text + self._model.decode(run)

    def save(self, folder: Path) -> None:
        _copy(self.where, folder / SENTENCEPIECE_FILE)


def load(where: str | Path) -> Tokenizer:
    """A folder with tokenizer.json or tokenizer.model, or one such file itself. Raises ValueError for anything else."""
    path = Path(where)
    if path.suffix == ".model" and path.is_file():
        return SentencePieceTokenizer(path)
    folder = path.parent if path.name == "tokenizer.json" else path
    if (folder / "tokenizer.json").is_file():
        return HuggingFaceTokenizer(folder)
    if (path / SENTENCEPIECE_FILE).is_file():
        return SentencePieceTokenizer(path / SENTENCEPIECE_FILE)
    raise ValueError(
        f"tokenizer {str(where)!r}: expected a tokenizer.json, a folder that holds one, or a sentencepiece .model"
    )


def train(texts: Iterable[str], folder: Path, vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2) and save it as a Hugging Face folder.

    The same texts give the same file, byte for byte. Ids 0, 1, 2 are <|endoftext|>, <|im_start|>, <|im_end|>.
    Raises ValueError if `vocab_size` cannot hold the 256 bytes and the special tokens.
    """
    specials = [TEXT_END, TURN_START, TURN_END]
    if vocab_size < 256 + len(specials):
        raise ValueError(f"vocab_size {vocab_size}: a byte-level vocabulary needs at least {256 + len(specials)}")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": TEXT_END,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHATML_TEMPLATE,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / "tokenizer_config.json", json.dumps(config, indent=2).encode())
    write_durably(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    return HuggingFaceTokenizer(folder)


def _chat_template(folder: Path, config: dict) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    write_durably(target, source.read_bytes())


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def _digest(model: bytes, template: str | None, variables: dict[str, str]) -> str:
    settings = json.dumps([template, variables], sort_keys=True).encode()
    return hashlib.sha256(hashlib.sha256(model).digest() + settings).hexdigest()
