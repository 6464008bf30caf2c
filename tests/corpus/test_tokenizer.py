"""Tokenizers give back what they were given, never take text for markup, and are the same every time."""

import json

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from osim_core.corpus import tokenizer as tokenizers
from osim_core.corpus.tokenizer import TEXT_END, TURN_END, TURN_START

TEXTS = [f"how are you {i}? i'm fine, thanks :) what's new" for i in range(300)] + ["caf\u00e9 \u732b\n\n"] * 5


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tokenizers.train(TEXTS, tmp_path_factory.mktemp("trained"), vocab_size=400)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    def train(name, **options):
        prefix = tmp_path_factory.mktemp("pieces") / name
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS),
            model_prefix=str(prefix),
            vocab_size=400,
            hard_vocab_limit=False,
            minloglevel=2,
            **options,
        )
        return prefix.with_suffix(".model")

    return train


@pytest.fixture(scope="module", params=["trained", "control pieces", "user-defined pieces"])
def tokenizer(request, trained, pieces):
    if request.param == "trained":
        return trained
    kind = "control_symbols" if request.param == "control pieces" else "user_defined_symbols"
    options = {"normalization_rule_name": "identity", "byte_fallback": True, kind: f"{TURN_START},{TURN_END}"}
    return tokenizers.load(pieces("chat", remove_extra_whitespaces=False, **options))


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\u2581"), max_size=40))
def test_decoding_gives_back_the_text(tokenizer, text):
    ids = tokenizer.encode_batch([text])[0]
    assert ids.dtype == np.int32 and (ids < tokenizer.vocab_size).all()
    assert tokenizer.decode(ids) == text


def test_typed_markup_stays_text(tokenizer):
    typed = f"hi{TURN_END}\n{TURN_START}assistant\n{TURN_END}"
    ids = tokenizer.encode_batch([typed])[0]
    assert not set(ids.tolist()) & set(tokenizer.specials.values())
    assert tokenizer.decode(ids) == typed


def test_markup_is_recognised_where_asked(tokenizer):
    ids = tokenizer.encode_markup(f"{TURN_START}user\nhi{TURN_END}\n").tolist()
    assert ids[0] == tokenizer.specials[TURN_START]
    assert ids.count(tokenizer.specials[TURN_END]) == 1
    assert tokenizer.decode(ids) == f"{TURN_START}user\nhi{TURN_END}\n"


def test_a_batch_is_its_texts_one_by_one(tokenizer):
    texts = ["", "a", "how are you", "caf\u00e9\n"]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert np.array_equal(ids, tokenizer.encode_batch([text])[0])


def test_training_twice_gives_the_same_file(trained, tmp_path):
    again = tokenizers.train(iter(TEXTS), tmp_path, vocab_size=400)
    assert (tmp_path / "tokenizer.json").read_bytes() == (trained.where / "tokenizer.json").read_bytes()
    assert again.fingerprint == trained.fingerprint


def test_the_fingerprint_covers_vocabulary_and_template(trained, tmp_path):
    other = tokenizers.train(TEXTS, tmp_path / "other", vocab_size=401)
    trained.save(tmp_path / "copy")
    assert tokenizers.load(tmp_path / "copy").fingerprint == trained.fingerprint != other.fingerprint
    (tmp_path / "copy" / "chat_template.jinja").write_text("{{ messages }}")
    assert tokenizers.load(tmp_path / "copy").fingerprint != trained.fingerprint


def test_special_tokens_lead_and_padding_is_token_zero(trained):
    assert trained.specials == {TEXT_END: 0, TURN_START: 1, TURN_END: 2}
    assert trained.end_of_text == 0 and trained.vocab_size == 400


def test_transformers_loads_what_was_trained(trained):
    theirs = AutoTokenizer.from_pretrained(trained.where)
    text = "how are you, caf\u00e9?\n"
    assert theirs(text, add_special_tokens=False).input_ids == trained.encode_batch([text])[0].tolist()
    assert theirs.eos_token == TURN_END and theirs.pad_token_id == 0


def test_a_file_or_its_folder(trained):
    assert tokenizers.load(trained.where / "tokenizer.json").fingerprint == tokenizers.load(trained.where).fingerprint


def test_a_saved_sentencepiece_model_loads_from_its_folder(pieces, tmp_path):
    symbols = f"{TURN_START},{TURN_END}"
    path = pieces("saved", normalization_rule_name="identity", byte_fallback=True, control_symbols=symbols)
    tokenizers.load(path).save(tmp_path)
    assert tokenizers.load(tmp_path).fingerprint == tokenizers.load(path).fingerprint


def test_models_that_cannot_hold_a_chat_are_refused(pieces):
    with pytest.raises(ValueError, match=r"bare.model: no piece .*--control_symbols"):
        tokenizers.load(pieces("bare", normalization_rule_name="identity", byte_fallback=True))
    with pytest.raises(ValueError, match=r"lossy.model: decoding does not give back.*identity"):
        tokenizers.load(pieces("lossy", control_symbols=f"{TURN_START},{TURN_END}"))


def test_what_is_no_tokenizer_is_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match=r"expected a tokenizer.json, a folder that holds one, or a sentencepiece"):
        tokenizers.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"no": "model"}))
    with pytest.raises(ValueError, match=r"tokenizer.json: not a readable tokenizer.json"):
        tokenizers.load(tmp_path)
    (tmp_path / "x.model").write_text("no")
    with pytest.raises(ValueError, match=r"x.model: not a readable sentencepiece model"):
        tokenizers.load(tmp_path / "x.model")
    with pytest.raises(ValueError, match="vocab_size 100: a byte-level vocabulary needs at least 259"):
        tokenizers.train(TEXTS, tmp_path, vocab_size=100)
