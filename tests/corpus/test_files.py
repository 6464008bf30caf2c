"""The user's rows: good ones arrive in order, each bad one stops the run with its file, row and fix."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from osim_core.corpus.conversation import Message
from osim_core.corpus.roles import RoleTable
from osim_core.corpus.sources import files

GOOD = {
    "messages": [{"role": "user", "content": "caf\u00e9?"}, {"role": "assistant", "content": "yes"}],
    "data_source": "wildchat",
}


def row(**changes):
    return {**GOOD, **changes}


def jsonl(folder, *rows, name="rows.jsonl"):
    path = folder / name
    path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
    return path


def parquet(folder, *rows, name="rows.parquet"):
    path = folder / name
    columns = {key: None for r in rows for key in r}  # pyarrow takes the columns of the first row only
    pq.write_table(pa.Table.from_pylist([{**columns, **r} for r in rows]), path)
    return path


def read(path, **roles):
    return list(files.read(files.find_files([path]), RoleTable(roles)))


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_rows_become_conversations_with_the_human_trained(tmp_path, write):
    path = write(tmp_path, GOOD, row(group="thread 1"), row(data_source="sotopia", group="thread 2"))
    first, second, third = read(path)
    assert first.messages == (Message("assistant", "caf\u00e9?"), Message("user", "yes"))
    assert third.messages == (Message("user", "caf\u00e9?"), Message("assistant", "yes"))
    assert first.group == first.id and second.group == "thread 1"
    assert [c.source for c in (first, second, third)] == ["wildchat", "wildchat", "sotopia"]


def test_messages_may_lie_in_extra_info(tmp_path):
    nested = {"extra_info": {"messages": GOOD["messages"]}, "data_source": "wildchat"}
    assert read(jsonl(tmp_path, nested))[0].messages == read(jsonl(tmp_path, GOOD))[0].messages
    assert read(parquet(tmp_path, nested))[0].messages == read(parquet(tmp_path, GOOD))[0].messages


def test_more_rows_than_a_batch_keep_their_order_and_number(tmp_path):
    count = 2 * files.BATCH_ROWS + 7
    rows = [row(messages=[{"role": "user", "content": str(i)}]) for i in range(count)]
    path = parquet(tmp_path, *rows)
    conversations = read(path)
    assert [c.messages[0].content for c in conversations] == [str(i) for i in range(count)]
    assert conversations[-1].id == f"{path}:{count - 1}"


def test_a_folder_stands_for_its_files_in_order(tmp_path):
    b, a = jsonl(tmp_path, GOOD, name="b.jsonl"), parquet(tmp_path, GOOD, name="a.parquet")
    (tmp_path / "notes.txt").write_text("not data")
    assert files.find_files([tmp_path]) == [a, b]


def test_sources_are_counted_over_all_files(tmp_path):
    a = jsonl(tmp_path, GOOD, GOOD, row(data_source="other"))
    b = parquet(tmp_path, GOOD)
    assert files.count_sources([a, b]) == {"wildchat": 3, "other": 1}


def said(role, content):
    return row(messages=[{"role": role, "content": content}])


BAD_ROWS = {
    "no messages": ({"data_source": "wildchat"}, r"messages must be a list of .* got null"),
    "empty messages": (row(messages=[]), "got an empty list"),
    "messages of text": (row(messages="hi"), "got str"),
    "message of text": (row(messages=["hi"]), "message 0: expected {role, content}, got str"),
    "null content": (said("user", None), 'message 0: content must be a string, got null; use ""'),
    "number content": (said("user", 3), "content must be a string, got int"),
    "bad role": (said("human", "hi"), "role 'human' is not one of system, user, assistant, tool"),
    "no source": (
        {"messages": GOOD["messages"]},
        "data_source must be the name of the row's source, got null",
    ),
    "unknown source": (row(data_source="mine"), r"data_source 'mine' has no declared roles.*keep.*swap"),
    "a source that forbids training": (row(data_source="tau-usi"), r"source 'tau-usi' is refused: .*CC BY-NC 4\.0"),
    "nothing trained": (said("assistant", "hi"), "nothing to train.*'swap'.*'wildchat'"),
    "group of lists": (row(group=[1]), "group must be a string or an integer, got list"),
    "half a character": (
        b'{"messages": [{"role": "user", "content": "\\ud800"}], "data_source": "wildchat"}',
        "surrogate",
    ),
    "broken JSON": (b'{"messages": [', "not valid JSON"),
    "a list": (b"[1, 2]", "expected an object with messages and data_source, got list"),
    "latin-1": (b'{"data_source": "caf\xe9"}', r"not valid UTF-8 \(byte 20\)"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named(tmp_path, name):
    bad, message = BAD_ROWS[name]
    path = jsonl(tmp_path, GOOD, GOOD, bad)
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert f"{path}, line 3" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bad_parquet_row_is_named_from_zero(tmp_path):
    rows = [GOOD] * 1500 + [said("user", None)]
    with pytest.raises(ValueError, match=r"rows.parquet, row 1500, message 0: content must be a string, got null"):
        read(parquet(tmp_path, *rows))


def test_columns_that_are_missing_are_named(tmp_path):
    path = parquet(tmp_path, {"text": "hello"})
    with pytest.raises(ValueError, match="row 0: data_source must be"):
        read(path)
    with pytest.raises(ValueError, match="row 0: data_source must be"):
        files.count_sources([path])


def test_files_that_are_not_what_they_say(tmp_path):
    broken = tmp_path / "x.parquet"
    broken.write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"x.parquet: not a readable parquet file"):
        read(broken)
    with pytest.raises(ValueError, match=r"missing\.jsonl: no such file"):
        files.find_files([tmp_path / "missing.jsonl"])
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(ValueError, match=r"expected a .parquet or .jsonl file"):
        files.find_files([tmp_path / "x.csv"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no .parquet or .jsonl file in this folder"):
        files.find_files([tmp_path / "empty"])


def test_a_truncated_parquet_file_is_an_error_and_not_the_end(tmp_path):
    path = parquet(tmp_path, *[GOOD] * 5000)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="not a readable parquet file"):
        read(path)
