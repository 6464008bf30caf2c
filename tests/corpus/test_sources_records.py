"""Damaged files: every bad row is named and counted, every good row still arrives, and memory stays bounded."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osim_core.corpus.sources import records
from osim_core.corpus.sources.quarantine import BadRow, Quarantine
from osim_core.corpus.sources.records import find_records, members, read_records


def read(path, *columns):
    quarantine = Quarantine()
    return [row for _, row in read_records([path], columns, quarantine)], quarantine


def test_each_bad_line_is_named_and_the_others_arrive(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'{"a": 1}\n\n{"a": \xff}\n{"a": 2\n[3]\n{"b": 4}\n{"a": "' + b"x" * 17 * 2**20 + b'"}\n{"a": 5}\n'
    )
    log = tmp_path / "bad.jsonl"
    quarantine = Quarantine(log)
    rows = [(where.row, row) for where, row in read_records([path], ["a"], quarantine)]
    assert rows == [(1, {"a": 1}), (8, {"a": 5})]
    assert quarantine.counts == {"not UTF-8": 1, "not JSON": 1, "wrong type": 1, "wrong column": 1, "too large": 1}
    assert quarantine.rows == len(rows) + quarantine.quarantined == 7
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(bad["row"], bad["kind"]) for bad in logged] == [
        (3, "not UTF-8"),
        (4, "not JSON"),
        (5, "wrong type"),
        (6, "wrong column"),
        (7, "too large"),
    ]
    assert all(bad["file"] == str(path) for bad in logged)
    assert str(17 * 2**20 + 10) in logged[4]["reason"]
    assert "'a'" in logged[3]["reason"] and "has b" in logged[3]["reason"]


def test_a_row_of_50_mb_costs_its_row_and_little_memory(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": 1}\n{"a": "')
        for _ in range(50):
            file.write(b"x" * 2**20)
        file.write(b'"}\n{"a": 2}\n')
    tracemalloc.start()
    rows, quarantine = read(path, "a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == [{"a": 1}, {"a": 2}] and quarantine.counts == {"too large": 1}
    assert peak < 40 * 2**20  # a line's limit, twice


def test_a_last_line_without_a_break_is_a_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}')
    assert read(path)[0] == [{"a": 1}, {"a": 2}]


def table(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def test_a_truncated_parquet_is_quarantined_and_the_next_file_is_read(tmp_path):
    broken = table(tmp_path / "a.parquet", [{"a": i} for i in range(5000)])
    broken.write_bytes(broken.read_bytes()[:-200])
    table(tmp_path / "b.parquet", [{"a": 7}])
    quarantine = Quarantine()
    rows = list(read_records(find_records([tmp_path]), ["a"], quarantine))
    assert [row for _, row in rows] == [{"a": 7}]
    assert quarantine.counts == {"unreadable file": 1}
    assert quarantine.examples[0]["file"] == str(broken) and quarantine.examples[0]["row"] is None


def test_a_damaged_row_group_costs_its_own_rows(tmp_path):
    path = table(
        tmp_path / "a.parquet",
        [{"a": f"row {i} {'x' * 50}"} for i in range(1200)],
        row_group_size=500,
        compression="zstd",
        use_dictionary=False,
    )
    file = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = file.data_page_offset
    data[start : start + 400] = b"\0" * 400
    path.write_bytes(data)
    rows, quarantine = read(path, "a")
    assert [row["a"].split()[1] for row in rows] == [str(i) for i in [*range(500), *range(1000, 1200)]]
    assert quarantine.counts == {"unreadable rows": 500} and quarantine.rows == 1200
    assert quarantine.examples[0]["row"] == "500 to 999"


def test_one_huge_parquet_row_and_one_of_bad_bytes_cost_only_themselves(tmp_path):
    texts = [b"good", b"x" * (17 * 2**20), b"caf\xe9", b"fine"]
    column = pa.array(texts, pa.binary()).view(pa.string())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": column}), path)
    rows, quarantine = read(path, "a")
    assert rows == [{"a": "good"}, {"a": "fine"}]
    assert [(bad["row"], bad["kind"]) for bad in quarantine.examples] == [(1, "too large"), (2, "not UTF-8")]
    assert quarantine.rows == 4


def test_a_gzip_that_stops_is_named(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(b'{"a": %d}\n' % i for i in range(20000)))[:-3000])
    rows, quarantine = read(path, "a")
    assert 0 < len(rows) < 20000 and [row["a"] for row in rows] == list(range(len(rows)))
    assert quarantine.counts == {"unreadable file": 1}


def test_csv_fields_may_hold_breaks_and_a_row_with_too_many_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n1,"two\nlines"\n3,4,5\n6,7\n')
    rows, quarantine = read(path, "a", "b")
    assert rows == [{"a": "1", "b": "two\nlines"}, {"a": "6", "b": "7"}]
    assert [(bad["row"], bad["kind"]) for bad in quarantine.examples] == [(4, "not CSV")]


def test_a_json_list_is_read_until_it_breaks(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1}, {"a": 2}, {"a": nonsense}]')
    rows, quarantine = read(path, "a")
    assert rows == [{"a": 1}, {"a": 2}]
    assert quarantine.counts == {"not JSON": 1} and quarantine.examples[0]["row"] == 2


def test_a_break_in_a_long_list_is_named_where_it_is_and_not_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_ROW_BYTES", 2**16)  # less than what follows the break
    path = tmp_path / "rows.json"
    path.write_text("[" + '{"a": 1}, ' * 20000 + '{"a": ?}' + ', {"a": 1}' * 20000 + "]")
    rows, quarantine = read(path, "a")
    assert len(rows) == 20000 and quarantine.counts == {"not JSON": 1}
    assert quarantine.examples[0]["row"] == 20000 and "rest of the file" in quarantine.examples[0]["reason"]


def test_an_unclosed_quote_in_a_table_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n1,2\n3,"never closed\n' + "5,6\n" * 10)
    rows, quarantine = read(path, "a", "b")
    assert rows[0] == {"a": "1", "b": "2"}
    assert len(rows) == 1 and quarantine.counts == {"not CSV": 1}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(), values, max_size=6) | st.lists(values, max_size=6),
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from([None, 2]),
)
def test_members_are_those_of_the_whole_file_for_any_block_size(tmp_path_factory, value, block, ascii_only, indent):
    path = tmp_path_factory.getbasetemp() / "members.json"
    path.write_text(json.dumps(value, ensure_ascii=ascii_only, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BLOCK", block)
        found = list(members(path))
    assert found == (list(value.items()) if isinstance(value, dict) else list(enumerate(value)))


@pytest.mark.parametrize("text", ['{"a": 1', '{"a" 1}', "3", "", "[1 2]", "[1,", '{"a": 1,}'])
def test_a_file_that_is_no_json_is_never_taken_for_a_short_one(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(BadRow):
        list(members(path))


def test_files_that_are_not_there_or_not_data(tmp_path):
    with pytest.raises(ValueError, match=r"missing\.jsonl: no such file"):
        find_records([tmp_path / "missing.jsonl"])
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"expected one of \.jsonl"):
        find_records([tmp_path / "notes.txt"])
    with pytest.raises(ValueError, match=r"no \.jsonl.* file here"):
        find_records([Path(tmp_path)])
