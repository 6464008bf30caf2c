"""Decontamination: planted benchmark items are found however they are dressed, and ordinary talk is left alone."""

import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osim_core._decontaminate import COMMON, GRAM
from osim_core.corpus.decontaminate import Decontaminator, Item, decontaminate
from osim_core.corpus.decontaminate.__main__ import main
from osim_core.corpus.sources import SOURCES


def brute_force(items, rows):
    """(row, item) -> (longest, covered), by looking at every pair of positions."""

    def words(text):
        return re.findall(r"\w+", text.lower())

    result = {}
    for r, turns in enumerate(rows):
        row = [word for turn in turns for word in words(turn)]
        for i, item in enumerate(items):
            longest, covered = 0, 0
            for text in map(words, item.texts):
                inside = set()
                if len(text) < GRAM and text and text in [words(turn) for turn in turns]:
                    inside, longest = set(range(len(text))), max(longest, len(text))
                for a in range(len(text)):
                    for b in range(len(row)):
                        run = 0
                        while a + run < len(text) and b + run < len(row) and text[a + run] == row[b + run]:
                            run += 1
                        if run >= GRAM:
                            longest = max(longest, run)
                            inside.update(range(a, a + run))
                covered += len(inside)
            if longest:
                result[r, i] = longest, covered
    return result


# two words only, so that runs are long, overlap and repeat
texts = st.lists(st.sampled_from(["a", "b", "A,", "B!"]), max_size=24).map(" ".join)
rows = st.lists(st.lists(texts, min_size=1, max_size=3), max_size=4)


@given(st.lists(st.lists(texts, min_size=1, max_size=2), min_size=1, max_size=2), rows)
@settings(max_examples=150, deadline=None)
def test_matches_equal_a_search_of_every_pair_of_positions(item_texts, rows):
    items = [Item(str(n), "b", ("a", *texts)) for n, texts in enumerate(item_texts)]
    found = Decontaminator(items).search(rows)
    lengths = [len(re.findall(r"\w+", " ".join(item.texts))) for item in items]
    covered = np.rint(found.coverage * np.array(lengths)[found.item]).astype(int)
    pairs = zip(found.row.tolist(), found.item.tolist(), found.longest.tolist(), covered.tolist(), strict=True)
    assert {(r, i): (longest, covered) for r, i, longest, covered in pairs} == brute_force(items, rows)


@pytest.fixture(scope="module")
def talk():
    """Real conversations as rows of turns."""
    conversations = list(SOURCES["chitchat"].load(Counter()))
    return [[message.content for message in c.messages] for c in conversations[:2000]]


@pytest.fixture(scope="module")
def items():
    """Passages of plays as items; none of them occurs in the chats."""
    plays = list(SOURCES["shakespeare"].load(Counter()))
    passages = [m.content for c in plays for m in c.messages if 12 <= len(m.content.split()) <= 120]
    return [Item(f"p{n}", "plays", (text,)) for n, text in enumerate(dict.fromkeys(passages[:3000]))]


def test_every_planted_item_is_found_and_nothing_else(talk, items):
    index, rng = Decontaminator(items), np.random.default_rng(5)
    clean = index.search(talk)
    assert clean.flagged.sum() <= 0.001 * len(talk), "false flags"
    planted = [list(turns) for turns in talk[: len(items)]]
    for number, turns in enumerate(planted):
        text, at = items[number].texts[0], rng.integers(len(turns) + 1)
        words = text.split()
        cut = rng.integers(1, len(words))
        turns[at:at] = {
            0: [text],
            1: [f"someone once said: {text.upper()} -- you know?"],
            2: [" ".join(words[:cut]), " ".join(words[cut:])],  # wrapped in two roles
            3: [re.sub(r"\s+", "  \n", text.replace(",", " ;").title())],
        }[number % 4]
    found = index.search(planted)
    flagged = set(zip(found.row[found.flagged].tolist(), found.item[found.flagged].tolist(), strict=True))
    missed = [n for n in range(len(planted)) if (n, n) not in flagged]
    assert not missed
    assert (found.coverage[(found.row == found.item) & found.flagged] == 1).all()


def test_threads_find_the_same(talk, items):
    index = Decontaminator(items)
    mixed = [[*turns, items[n % len(items)].texts[0]] for n, turns in enumerate(talk)]
    for one, two in zip(index.search(mixed, threads=1), index.search(mixed, threads=3), strict=True):
        assert np.array_equal(one, two)


def test_a_prompt_that_many_items_share_is_not_evidence_but_what_follows_it_is():
    prompt = "please read the following story about a person and answer the question below with one word"
    items = [Item(str(n), "b", (f"{prompt} story number {n} is about a cat",)) for n in range(COMMON + 1)]
    index = Decontaminator(items)
    assert not len(index.search([[f"{prompt} nothing of that kind"]]).row)
    found = index.search([[f"so {prompt} story number 7 is about a cat"]])
    assert found.item[found.flagged & (found.coverage == 1)].tolist() == [7]


def test_everyday_phrases_are_matches_without_a_flag():
    index = Decontaminator([Item("hi", "b", ("How are you?",)), Item("ask", "b", ("what did you do last weekend",))])
    found = index.search([["hello", "how are you"], ["well how are you doing"], ["What did you do, last weekend?"]])
    assert found.row.tolist() == [0, 2] and found.flagged.tolist() == [False, True]


@pytest.mark.parametrize(
    ("items", "complaint"),
    [
        ([], "at least one"),
        ([Item("x", "b", ("a",))] * 2, "'x' is there twice"),
        ([Item("x", "b", ("?",))], "no words"),
    ],
)
def test_items_that_cannot_be_searched_are_named(items, complaint):
    with pytest.raises(ValueError, match=complaint):
        Decontaminator(items)


# the command


ITEM = {"id": "q1", "benchmark": "tau", "text": "I would like to change the seat of my flight to Boston please"}


@pytest.fixture
def files(tmp_path):
    turns = ["Hi! I would like to change the seat", "of my flight to Boston, please"]
    messages = [{"role": role, "content": turn} for role, turn in zip(("user", "assistant"), turns, strict=True)]
    rows = [{"text": "nothing to see"}, {"messages": messages}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "items.jsonl").write_text(json.dumps(ITEM) + "\n")
    return tmp_path


def test_command_writes_matches_and_prints_counts(files):
    command = [sys.executable, "-m", "osim_core.corpus.decontaminate", "in.jsonl", "--against", "items.jsonl"]
    command += ["--out", "out.parquet"]
    done = subprocess.run(command, cwd=files, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["rows"], counts["rows_flagged"]) == (2, 1)
    assert counts["benchmarks"] == {"tau": {"items": 1, "items_found": 1, "items_too_short": 0}}
    assert counts["sources"]["in.jsonl"]["rows"] == 2 and "decontaminate search" in done.stderr
    items = json.loads((files / "out.parquet.report.json").read_text())["items"]
    assert items["q1"]["flagged"] == 1 and items["q1"]["sources"] == {"in.jsonl": 1}
    assert pq.read_table(files / "out.parquet").to_pylist() == [
        {"row": 1, "item": "q1", "benchmark": "tau", "longest": 13, "coverage": 1.0, "flagged": True}
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"text": "cut', "in.jsonl, row 3: "),
        (b'{"text": null}', 'in.jsonl, row 3: needs "text" or "messages"'),
        (b'{"messages": [{"role": "user"}]}', "in.jsonl, row 3: needs"),
        (b"[]", "in.jsonl, row 3: needs"),
        (b'{"text": "\xff"}', "in.jsonl, row 3: 'utf-8' codec"),
        (b'{"text": "\\ud800"}', "in.jsonl, row 3: 'utf-8' codec"),
    ],
)
def test_a_bad_row_is_one_line_and_nothing_is_half_written(files, line, complaint, capsys, monkeypatch):
    with (files / "in.jsonl").open("ab") as file:
        file.write(line + b"\n")
    monkeypatch.chdir(files)
    assert main(["in.jsonl", "--against", "items.jsonl", "--out", "out.parquet"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and complaint in printed and printed.count("\n") == 1
    assert sorted(path.name for path in files.iterdir()) == ["in.jsonl", "items.jsonl"]


def test_rows_keep_their_numbers_over_chunks(files, monkeypatch):
    monkeypatch.setattr("osim_core.corpus.decontaminate.run.ROWS_AT_A_TIME", 1)
    decontaminate(files / "in.jsonl", files / "items.jsonl", files / "out.parquet")
    assert pq.read_table(files / "out.parquet")["row"].to_pylist() == [1]
