"""The ledger appends whole JSON rows that say on what they were measured; the dispatcher lists what there is."""

import json
import subprocess
import sys

import pytest

from benchmarks import __main__ as dispatcher
from benchmarks.ledger import quantiles, record


def test_rows_are_appended_whole_with_hardware_versions_and_commit(tmp_path):
    out = tmp_path / "deep" / "rows.jsonl"
    for capacity in (16, 32):
        record(
            "packing",
            {"capacity": capacity, "dtype": "int32"},
            {"ns": 1.5, **quantiles([0.2, 0.1, 0.3])},
            out,
        )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["case"]["capacity"] for row in rows] == [16, 32]
    assert rows[0]["result"]["p50_s"] == 0.2 and rows[0]["result"]["ns"] == 1.5
    assert rows[0]["hardware"]["cores"] >= 1 and rows[0]["hardware"]["cpu"]
    assert rows[0]["versions"]["torch"] and rows[0]["date"]
    assert {"commit", "dirty"} <= rows[0].keys()


def test_quantiles_are_the_20th_50th_and_80th_percentile():
    figures = quantiles([float(second) for second in range(11)])
    assert figures == {"p20_s": 2.0, "p50_s": 5.0, "p80_s": 8.0, "runs": 11}
    with pytest.raises(ValueError, match="no timings"):
        quantiles([])


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_a_value_that_json_cannot_hold_is_refused_and_nothing_is_written(value, tmp_path):
    with pytest.raises(ValueError):
        record("packing", {}, {"ns": value}, tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()


def test_every_benchmark_is_listed_with_its_first_line():
    listed = dispatcher.benchmarks()
    assert "packing" in listed and "ledger" not in listed
    assert all(listed.values()), "a benchmark without a docstring"


@pytest.mark.parametrize(("argv", "complaint"), [([], "usage:"), (["no-such"], "no benchmark 'no-such'")])
def test_no_or_an_unknown_name_lists_the_names_and_exits_2(argv, complaint):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *argv],
        capture_output=True,
        text=True,
        cwd=dispatcher.FOLDER.parent,
    )
    assert done.returncode == 2 and complaint in done.stderr and "packing" in done.stderr
