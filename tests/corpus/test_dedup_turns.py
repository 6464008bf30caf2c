"""Recurring turns: counted as the clusters of all turns say, and dropped or masked without losing a phrase."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osim_core import _dedup
from osim_core.corpus.dedup import find_duplicates
from osim_core.corpus.dedup.turns import TurnSettings, choose_dropped, count_conversations, find_recurring_turns, main
from osim_core.corpus.sources import SOURCES

GREETING = "Hello and thank you for calling us, how may I help you today?"
FAREWELL = "Is there anything else that I can do for you before we say goodbye for now, {}?"


def write(path: Path, conversations: list[list[str]], system: str | None = None) -> Path:
    """A row of messages each; the roles alternate behind an optional system turn."""
    with path.open("w") as file:
        for turns in conversations:
            messages = [{"role": "system", "content": system}] if system else []
            messages += [{"role": ("assistant", "user")[i % 2], "content": turn} for i, turn in enumerate(turns)]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def run(path: Path | list[Path], **options) -> tuple[dict[str, list], dict]:
    out = (path if isinstance(path, Path) else path[0]).parent / "out.parquet"
    figures = find_recurring_turns(path, out, TurnSettings(**options))
    return pq.read_table(out).to_pydict(), figures


@pytest.fixture(scope="module")
def chats() -> list[list[str]]:
    """Real conversations, with stock turns put in by hand."""
    conversations = list(SOURCES["chitchat"].load(Counter()))[::4][:900]
    rows = [[message.content for message in c.messages] for c in conversations]
    for number, turns in enumerate(rows):
        if number % 3 == 0:
            turns.insert(0, GREETING.upper() if number % 2 else GREETING)
        if number % 30 == 0:
            turns.append(FAREWELL.format(f"guest{number}"))  # 16 words, the last one differs
    return rows


def test_turns_recur_as_their_clusters_say(chats, tmp_path):
    path = write(tmp_path / "in.jsonl", chats, system="You are a person who chats about this and that.")
    table, figures = run(path, at_least=5, threads=2)
    turns = [(r, t + 1, text) for r, row in enumerate(chats) for t, text in enumerate(row)]
    turns = [(r, t, text) for r, t, text in turns if len(json.dumps(text)) - 2 >= 20]
    survivor = find_duplicates([text for _, _, text in turns]).survivor.tolist()
    rows_of: dict[int, set[int]] = {}
    for phrase, (row, _, _) in zip(survivor, turns, strict=True):
        rows_of.setdefault(phrase, set()).add(row)
    expected = [[] for _ in chats]
    for phrase, (row, turn, _) in zip(survivor, turns, strict=True):
        if len(rows_of[phrase]) >= 5:
            expected[row].append(turn)
    assert table["recurring"] == expected and sum(map(len, expected)) >= 330
    assert figures["turns"] == len(turns) and figures["recurring"] == sum(map(len, expected))
    assert figures["phrases"] == sum(len(rows) >= 5 for rows in rows_of.values())
    assert figures["top"][0] == {"text": GREETING, "conversations": 300, "turns": 300, "near": 0}
    farewell = next(p for p in figures["top"] if p["text"] == FAREWELL.format("guest0"))
    assert farewell == {"text": FAREWELL.format("guest0"), "conversations": 30, "turns": 30, "near": 29}
    assert not any(table["drop"]) and not any(table["mask"])


def test_shares_are_those_of_the_bytes_that_people_say(chats, tmp_path):
    table, _ = run(write(tmp_path / "in.jsonl", chats, system="One system prompt of some length."), at_least=5)
    for row, turns in enumerate(chats):
        sizes = [len(json.dumps(text)) - 2 for text in turns]
        expected = sum(sizes[turn - 1] for turn in table["recurring"][row]) / sum(sizes)
        assert table["share"][row] == pytest.approx(expected, rel=1e-6)


def test_order_threads_and_files_change_nothing(chats, tmp_path):
    table, figures = run(write(tmp_path / "in.jsonl", chats), at_least=4)
    order = np.random.default_rng(0).permutation(len(chats))
    shuffled, _ = run(write(tmp_path / "shuffled.jsonl", [chats[i] for i in order]), at_least=4)
    assert shuffled["recurring"] == [table["recurring"][i] for i in order]
    halves = [write(tmp_path / "1.jsonl", chats[:401]), write(tmp_path / "2.jsonl", chats[401:])]
    again, same_figures = run(halves, at_least=4, threads=2)
    assert again == table and same_figures == figures


def test_mask_leaves_each_phrase_its_first_place(chats, tmp_path):
    table, figures = run(write(tmp_path / "in.jsonl", chats), at_least=20, policy="mask")
    kept = [set(r) - set(m) for r, m in zip(table["recurring"], table["mask"], strict=True)]
    firsts = [chats[row][turn] for row, turns in enumerate(kept) for turn in turns]
    assert sorted(firsts) == sorted(phrase["text"] for phrase in figures["top"]) and len(firsts) == figures["phrases"]
    assert figures["turns_masked"] == figures["recurring"] - figures["phrases"]


def test_drop_takes_scripts_and_nothing_that_only_begins_like_one(tmp_path):
    script = [
        "Welcome to the daily quiz, please answer every question.",
        "What is the capital of the country of France?",
    ]
    talk = [
        [script[0], f"My own words number {i} go on for quite a while, and nobody else says {i}."] for i in range(9)
    ]
    conversations = [*([script] * 3), *talk, [*script, "ok"], [script[1], "no"]]
    path = write(tmp_path / "in.jsonl", conversations)
    table, figures = run(path, at_least=4, policy="drop")
    assert table["drop"] == [False, True, True, *[False] * 9, True, True] and figures["rows_dropped"] == 4
    assert table["mask"] == [[]] * 14
    assert not any(run(path, at_least=4, policy="flag")[0]["drop"])
    assert not any(run(path, at_least=99, policy="drop")[0]["drop"])


recurring_turns = st.lists(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), max_size=4), min_size=1, max_size=20
)


@settings(max_examples=300, deadline=None)
@given(recurring_turns, st.data())
def test_no_phrase_disappears_and_only_rows_of_phrases_do(rows_of_turns, data):
    turns = [(phrase, row, size) for row, row_turns in enumerate(rows_of_turns) for phrase, size in row_turns]
    phrases, rows, lengths = np.array(turns, np.int64).reshape(-1, 3).T
    own = np.array(data.draw(st.lists(st.integers(0, 5), min_size=len(rows_of_turns), max_size=len(rows_of_turns))))
    row_bytes = own + np.bincount(rows, lengths, minlength=len(rows_of_turns)).astype(int)
    drop = choose_dropped(phrases, rows, lengths, row_bytes, 0.8)
    assert set(phrases[~drop[rows]]) == set(phrases)
    for row in range(len(rows_of_turns)):
        said = sum(size for _, size in rows_of_turns[row])
        if drop[row]:
            assert rows_of_turns[row] and said >= 0.8 * row_bytes[row]
        elif rows_of_turns[row] and said >= 0.8 * row_bytes[row]:  # it stays: nobody else who stays says all of it
            others = set(phrases[~drop[rows] & (rows < row)]) | {
                p for r, o in enumerate(rows_of_turns) if o and sum(s for _, s in o) < 0.8 * row_bytes[r] for p, _ in o
            }
            assert not {phrase for phrase, _ in rows_of_turns[row]} <= others


def test_a_conversation_that_repeats_itself_counts_once():
    phrases, rows = np.array([0, 0, 0, 3, 0, 3]), np.array([0, 0, 1, 1, 2, 2])
    assert count_conversations(phrases, rows).tolist() == [3, 0, 0, 2, 0, 0]


BAD = [
    ('{"messages": []}', "'messages' is missing or empty"),
    ('{"messages": "hi"}', "'messages' is missing or empty"),
    ('{"text": "hi"}', "'messages' is missing or empty"),
    ('{"messages": [{"role": "user", "content": null}]}', "a message has no string 'content'"),
    ('{"messages": [{"role": "user"}]}', "a message has no string 'content'"),
    ('{"messages": ["hi"]}', "a message has no string 'content'"),
    ('{"messages": [{"content": "hi"}', "not valid JSON"),
    ("[]", "not a JSON object"),
]


@pytest.mark.parametrize(("line", "reason"), BAD, ids=[line for line, _ in BAD])
def test_bad_rows_are_named_or_quarantined(line, reason, tmp_path):
    path = write(tmp_path / "in.jsonl", [["some words that are said twice"]] * 2)
    good = path.read_text().splitlines()
    path.write_text("\n".join([good[0], "", line, good[1]]))
    with pytest.raises(ValueError) as stopped:
        run(path)
    assert f"in.jsonl, row 1 (line 3): {reason}" in str(stopped.value)
    table, figures = run(path, at_least=2, policy="mask", bad_rows="quarantine")
    assert table["recurring"] == [[0], [], [0]] and table["mask"] == [[], [], [0]] and figures["quarantined"] == 1
    listed = json.loads((tmp_path / "out.parquet.quarantine.jsonl").read_text())
    assert (listed["row"], listed["line"], listed["reason"]) == (1, 3, reason)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.tuples(st.text(), st.booleans()), min_size=1, max_size=3), min_size=1, max_size=4))
def test_the_scanner_finds_the_messages_that_json_finds(tmp_path_factory, rows):
    keys = ("content", "c\\u006fntent")  # the same key
    lines = [
        json.dumps(
            {
                "n": [{}],
                "messages": [{keys[0]: t, "x": {"content": 1}, "role": "system" if s else "user"} for t, s in row],
            }
        )
        for row in rows
    ]
    data = "\n".join(line.replace('"content": "', f'"{keys[i % 2]}": "') for i, line in enumerate(lines)).encode()
    _, counts, errors, begins, lengths, system, _ = _dedup.scan_messages(np.frombuffer(data, np.uint8), 1 << 20, 1)
    assert counts.tolist() == [len(row) for row in rows] and not errors.any()
    found = [json.loads(b'"' + data[b : b + n] + b'"') for b, n in zip(begins, lengths, strict=True)]
    assert found == [text for row in rows for text, _ in row]
    assert system.tolist() == [said for row in rows for _, said in row]


@pytest.mark.parametrize("setting", [{"at_least": 1}, {"share": 0.0}, {"share": 1.5}, {"shortest": 0}])
def test_settings_that_cannot_work_are_refused(setting, tmp_path):
    with pytest.raises(ValueError, match=f"turns: {next(iter(setting))} must be"):
        run(tmp_path / "in.jsonl", **setting)


def test_the_command_line(tmp_path, capsys):
    path = write(tmp_path / "in.jsonl", [[GREETING, "one"], [GREETING, "two"]])
    out = tmp_path / "out.parquet"
    assert main([str(path), "--out", str(out), "--at-least", "2", "--policy", "mask"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["turns_masked"] == 1 and "turns cluster: 21/21" in printed.err
    assert pq.read_table(out)["mask"].to_pylist() == [[], [0]]
    assert main([str(tmp_path / "no.jsonl"), "--out", str(out)]) == 2
    assert capsys.readouterr().err.endswith("no.jsonl: no such file\n")
