"""The split on columns: equal to its three rules spelled out side by side, whatever chunks the sides lie in."""

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from osim_core.corpus.split import hold_out
from osim_core.corpus.stages.divide import ENDED, NEITHER, TRAIN, VALIDATION, DivideJob, divide, read_splits
from osim_core.corpus.stages.tables import SIDES


def sides_of(seed, count):
    """Sides of two sources: people who speak with each other, clusters of up to four sides, one in ten ended."""
    dice = random.Random(seed)
    return [
        {
            "source": dice.choice("ab"),
            "ended": dice.choice(["dedup", *[""] * 9]),
            "group": dice.randrange(40),
            "others": sorted(dice.sample(range(40, 90) if dice.random() < 0.5 else range(40), dice.randrange(3))),
            "cluster": dice.randrange(count // 2),
        }
        for _ in range(count)
    ]


def write_tables(folder, sides, sizes):
    """The sides as SIDES tables of these sizes, one of which is empty."""
    paths, first = [], 0
    rest = {name: None for name in SIDES.names} | dict.fromkeys(
        ("id", "axis", "reason", "context", "labels", "split"), ""
    )
    rest |= {"document": "", "masked": []}
    for number, size in enumerate(sizes):
        rows = [rest | side for side in sides[first : first + size]]
        paths.append(folder / f"{number}.parquet")
        pq.write_table(pa.Table.from_pylist(rows, SIDES), paths[-1])
        first += size
    return tuple(paths)


def expected(sides, share):
    """The rules, slowly."""
    held = {}
    for source in "ab":
        alive = [side for side in sides if side["source"] == source and not side["ended"]]
        groups = np.array([side["group"] for side in alive], np.uint64)
        others = np.array([other for side in alive for other in side["others"]], np.uint64)
        held[source] = set(hold_out(groups, others, share).tolist())
    codes = []
    for side in sides:
        if side["ended"]:
            codes.append(ENDED)
        elif side["group"] in held[side["source"]]:
            codes.append(VALIDATION)
        else:
            codes.append(NEITHER if held[side["source"]] & set(side["others"]) else TRAIN)
    clusters = {side["cluster"] for side, code in zip(sides, codes, strict=True) if code == VALIDATION}
    return [
        NEITHER if code == TRAIN and side["cluster"] in clusters else code
        for side, code in zip(sides, codes, strict=True)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_split_follows_its_rules(tmp_path, seed):
    sides = sides_of(seed, 400)
    wanted = expected(sides, 0.1)
    assert {ENDED, NEITHER, TRAIN, VALIDATION} == set(wanted)
    counts = divide(DivideJob(write_tables(tmp_path, sides, (150, 0, 249, 1)), ("a", "b"), 0.1), tmp_path, "splits")
    assert read_splits(tmp_path, 0, 400).tolist() == wanted
    assert counts["first"] == [0, 150, 150, 399, 400]
    for source in "ab":
        told = counts["sources"][source]
        found = [code for side, code in zip(sides, wanted, strict=True) if side["source"] == source]
        assert (told["train"], told["validation"]) == (found.count(TRAIN), found.count(VALIDATION))
        assert told["dropped_for_validation"] == found.count(NEITHER) and told["held_out_groups"] >= 1


def test_without_validation_everything_is_trained(tmp_path):
    sides = sides_of(0, 50)
    divide(DivideJob(write_tables(tmp_path, sides, (50,)), ("a", "b"), 0.0), tmp_path, "splits")
    assert read_splits(tmp_path, 0, 50).tolist() == [ENDED if side["ended"] else TRAIN for side in sides]
