"""Benchmark items for decontamination: which texts are items, what they find, and that chats are not flagged."""

import importlib.util
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from osim_core.corpus.decontaminate import Decontaminator
from osim_core.corpus.sources import chitchat
from osim_core.soul import packaged
from osim_core.soul.items import SHORTEST, benchmark_items
from osim_core.soul.tomi import questions


@pytest.fixture(scope="module")
def index() -> Decontaminator:
    return Decontaminator(benchmark_items())


def test_every_distinct_text_is_one_item_and_boilerplate_is_none(index):
    assert Counter(item.benchmark for item in index.items) == {
        "hitom": 120,
        "tomi": 999,
        "socialiqa": 2203,
        "tau2": 267,  # of 2,458 tasks: telecom has 2,285 of them and few different texts
    }
    texts = [text for item in index.items for text in item.texts]
    assert len(set(texts)) == len(texts) and min(len(text.split()) for text in texts) >= SHORTEST


def test_items_are_found_in_a_prompt_that_wraps_them(index):
    for item in index.items[::97]:
        (text,) = item.texts
        found = index.search([["Read this.", f"STORY:\n{text.upper()}\nWhat now?"]])
        assert item.id in {index.items[i].id for i in found.item[found.flagged]}


def test_a_question_alone_flags_nothing(index):
    rows = [[question.fields["question"]] for question in questions()[:200]]
    assert not index.search(rows).flagged.any()


def test_peoples_own_chats_are_not_flagged(index):
    folder = Path(importlib.util.find_spec("chitchat_dataset").origin).parent
    rows = [[m.content for m in c.messages] for c in islice(chitchat.read(folder, Counter()), 1500)]
    assert not index.search(rows).flagged.any()


def test_a_missing_wheel_is_one_line_that_says_what_to_run(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    with pytest.raises(ValueError, match="make setup"):
        packaged.read_text(packaged.EVALS, "any")
