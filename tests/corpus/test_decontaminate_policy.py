"""What is done about benchmark items in rows: places to mask are exactly the shared runs, and parts' reports add up."""

import itertools
import json
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osim_core._decontaminate import GRAM
from osim_core.corpus.decontaminate import Decontaminator, Item, Span
from osim_core.corpus.decontaminate.policy import account, by_benchmark, judge, merge
from osim_core.corpus.sources import SOURCES

# words of one and two letters, one of them not ASCII, so that bytes, characters and words all count differently
texts = st.lists(st.sampled_from(["a", "é", "A,", "É!", "→"]), max_size=24).map(" ".join)
rows = st.lists(st.lists(texts, min_size=1, max_size=3), max_size=4)


def brute_force(items: list[Item], turns: list[str], flagged: set[int]) -> set[tuple[int, int]]:
    """(turn, character) of every word of the row that stands in a run shared with a flagged item."""
    words = [(turn, m) for turn, text in enumerate(turns) for m in re.finditer(r"\w+", text)]
    lowered = [m[0].lower() for _, m in words]
    inside = set()
    for number in flagged:
        for text in items[number].texts:
            item = re.findall(r"\w+", text.lower())
            for turn in range(len(turns)):  # a short text that is a whole turn
                own = [w for w, (t, _) in enumerate(words) if t == turn]
                if len(item) < GRAM and item == [lowered[w] for w in own]:
                    inside.update(own)
            for a in range(len(item)):
                for b in range(len(lowered)):
                    run = 0
                    while a + run < len(item) and b + run < len(lowered) and item[a + run] == lowered[b + run]:
                        run += 1
                    if run >= GRAM:
                        inside.update(range(b, b + run))
    return {(words[w][0], c) for w in inside for c in range(*words[w][1].span())}


@given(st.lists(st.lists(texts, min_size=1, max_size=2), min_size=1, max_size=2), rows)
@settings(max_examples=150, deadline=None)
def test_masks_hold_the_words_of_shared_runs_and_no_others(item_texts, rows):
    items = [Item(str(n), "b", ("a", *texts)) for n, texts in enumerate(item_texts)]
    verdict = judge(Decontaminator(items), rows, "mask")
    for row, turns in enumerate(rows):
        of_row = verdict.matches.flagged & (verdict.matches.row == row)
        expected = brute_force(items, turns, set(verdict.matches.item[of_row].tolist()))
        spans = verdict.masks.get(row, [])
        covered = {(s.turn, c) for s in spans for c in range(s.begin, s.end) if re.match(r"\w", turns[s.turn][c])}
        assert covered == expected
        assert spans == sorted(spans) and verdict.masked_turns(row) == sorted({turn for turn, _ in expected})
        for one, two in itertools.pairwise(spans):
            assert one.turn < two.turn or one.end < two.begin  # disjoint
        for s in spans:  # from a word to a word
            assert re.match(r"\w", turns[s.turn][s.begin]) and re.match(r"\w", turns[s.turn][s.end - 1])


@pytest.fixture(scope="module")
def talk() -> list[list[str]]:
    """Real conversations as rows of turns."""
    conversations = list(SOURCES["chitchat"].load(Counter()))[::3][:600]
    return [[message.content for message in c.messages] for c in conversations]


@pytest.fixture(scope="module")
def items() -> list[Item]:
    """Real passages, none of which occurs in the conversations."""
    debates = list(SOURCES["debates"].load(Counter()))
    said = [m.content for c in debates for m in c.messages if m.role == "assistant"]  # each said once
    passages = [text for text in said if 15 <= len(text.split()) <= 80]
    assert len(passages) >= 200
    return [Item(f"d{n}", ("first", "second")[n % 2], (p,)) for n, p in enumerate(dict.fromkeys(passages[:200]))]


def test_items_planted_in_real_dialogues_are_masked_and_nothing_else(talk, items):
    index = Decontaminator(items)
    planted = [list(turns) for turns in talk]
    expected: dict[int, list[Span]] = {}
    for n, item in enumerate(items):
        turns, text = planted[2 * n], item.texts[0]
        begin = len(turns[1])
        first, last = re.search(r"\w", text).start(), re.search(r"\w(?=\W*$)", text).end()
        if n % 3 == 2:  # wrapped in two roles
            border = text.index(" ", len(text) // 2)
            turns[1:1] = [text[:border], text[border:]]
            pieces = [(1, text[:border]), (2, text[border:])]
            expected[2 * n] = [
                Span(t, re.search(r"\w", piece).start(), re.search(r"\w(?=\W*$)", piece).end()) for t, piece in pieces
            ]
            continue
        turns[1] += " → " + (text.upper() if n % 3 else text)  # behind somebody's own words
        expected[2 * n] = [Span(1, begin + 3 + first, begin + 3 + last)]
    verdict = judge(index, planted, "mask", threads=2)
    assert verdict.keep.all() and np.flatnonzero(verdict.flagged).tolist() == sorted(expected)
    for row, spans in expected.items():
        assert verdict.masks[row] == spans


def test_unrelated_dialogues_are_not_flagged(items):
    conversations = [[m.content for m in c.messages] for c in SOURCES["chitchat"].load(Counter())]
    verdict = judge(Decontaminator(items), conversations, "drop")
    assert len(conversations) > 4_000 and (~verdict.keep).sum() < 0.001 * len(conversations)


def test_policies_differ_in_what_they_do_not_in_what_they_find(talk, items):
    index = Decontaminator(items)
    planted = [[*turns, items[n].texts[0]] if n < 50 else turns for n, turns in enumerate(talk)]
    drop, mask, flag = (judge(index, planted, policy) for policy in ("drop", "mask", "flag"))
    assert (~drop.keep).tolist() == drop.flagged.tolist() == mask.flagged.tolist() == flag.flagged.tolist()
    assert flag.flagged.sum() == 50 and mask.keep.all() and flag.keep.all()
    assert not drop.masks and not flag.masks and sorted(mask.masks) == list(range(50))
    with pytest.raises(ValueError, match="must be drop, mask or flag, got 'keep'"):
        judge(index, planted, "keep")


def test_reports_of_parts_add_up_to_that_of_the_whole(talk, items):
    index = Decontaminator(items)
    planted = [[*turns, items[n // 2].texts[0]] if n < 90 else turns for n, turns in enumerate(talk)]
    sources = [("chats", "forum", "calls")[n % 3] for n in range(len(planted))]
    whole = account(index, judge(index, planted, "mask"), sources)
    cuts = [0, 7, 7, 40, 350, len(planted)]
    parts = [account(index, judge(index, planted[a:b], "mask"), sources[a:b]) for a, b in itertools.pairwise(cuts)]
    assert merge(json.loads(json.dumps(part)) for part in parts) == whole
    assert whole["sources"]["chats"] == {"rows": 200, "flagged": 30, "dropped": 0, "masked": 30, "masked_turns": 30}
    found = whole["items"]["d0"]
    assert found["rows"] == found["flagged"] == 2 and found["sources"] == {"chats": 1, "forum": 1}
    assert found["benchmark"] == "first" and found["coverage"] == 1
    assert found["longest"] == len(re.findall(r"\w+", items[0].texts[0]))
    counts = by_benchmark(index, whole)
    assert counts["first"] == {"items": 100, "items_found": 23, "items_too_short": 0}
    assert counts["second"]["items_found"] == 22


def test_the_report_names_the_worst_of_all_parts():
    words = [f"word{n}" for n in range(40)]
    index = Decontaminator([Item("q", "b", (" ".join(words),))])
    quotes = [words[:10], words[:30], words[5:25]]
    parts = [
        account(index, judge(index, [[" ".join(quote)]], "drop"), [source])
        for quote, source in zip(quotes, "xyx", strict=True)
    ]
    found = {"benchmark": "b", "rows": 3, "flagged": 2, "longest": 30, "coverage": 0.75, "sources": {"y": 1, "x": 1}}
    assert merge(parts)["items"] == merge(parts[::-1])["items"] == {"q": found}
    assert merge(parts)["sources"]["x"] == {"rows": 2, "flagged": 1, "dropped": 1, "masked": 0, "masked_turns": 0}
