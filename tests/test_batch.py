"""PackedBatch refuses rows that are not what they claim to be, and moves without changing."""

from dataclasses import fields, replace

import pytest
import torch

from osim_core.batch import PolicyColumns
from tests.support.models import random_rows

ROW = random_rows(rows=1, length=64, vocab_size=50)[0]


@pytest.mark.parametrize(
    "broken",
    [
        {"cu_seqlens": torch.tensor([1, 64], dtype=torch.int32)},  # does not start at 0
        {"cu_seqlens": torch.tensor([0, 63], dtype=torch.int32)},  # does not end at the row's end
        {"cu_seqlens": torch.tensor([0, 64])},  # int64
        {"cu_seqlens": torch.zeros(1, dtype=torch.int32)},  # no segment
        {"labels_T": ROW.labels_T[:-1]},
        {"positions_T": ROW.positions_T[:-1]},
        {"weights": {"ce": torch.ones(63)}},
        {"sources_S": ROW.sources_S[:-1]},
        {"documents_S": ROW.documents_S[:-1]},
        {"policy": PolicyColumns(advantages_T=torch.ones(63), sampler_logprobs_T=torch.ones(64))},
        {"policy": PolicyColumns(advantages_T=torch.ones(64).double(), sampler_logprobs_T=torch.ones(64))},
    ],
)
def test_a_row_whose_parts_disagree_is_refused(broken):
    with pytest.raises(AssertionError):
        replace(ROW, **broken)


def test_borders_that_go_back_are_refused():
    borders = ROW.cu_seqlens.clone()
    borders[1], borders[2] = ROW.cu_seqlens[2] + 1, ROW.cu_seqlens[1]
    with pytest.raises(AssertionError):
        replace(ROW, cu_seqlens=borders)


def test_empty_segments_are_allowed():
    borders = torch.tensor([0, 64, 64], dtype=torch.int32)
    row = replace(ROW, cu_seqlens=borders, sources_S=ROW.sources_S[:2], documents_S=ROW.documents_S[:2])
    assert row.num_tokens == 64


def test_moving_keeps_every_value():
    columns = PolicyColumns(
        advantages_T=torch.rand(64), sampler_logprobs_T=torch.rand(64), old_logprobs_T=torch.rand(64)
    )
    row = replace(ROW, parents_S=torch.full_like(ROW.sources_S, -1), policy=columns)
    moved = row.to(torch.device("cpu"))
    for column in fields(columns):
        before, after = getattr(columns, column.name), getattr(moved.policy, column.name)
        assert (before is after is None) or torch.equal(before, after)
    for field in fields(row):
        if field.name == "policy":
            continue
        before, after = getattr(row, field.name), getattr(moved, field.name)
        if field.name == "weights":
            assert before.keys() == after.keys()
            before, after = before["ce"], after["ce"]
        assert before.dtype == after.dtype and torch.equal(before, after)
    assert ROW.to(torch.device("cpu")).parents_S is None


@pytest.mark.parametrize("parents", [torch.zeros(1, dtype=torch.int32), torch.zeros(3)])
def test_parents_of_another_shape_or_dtype_are_refused(parents):
    borders = torch.tensor([0, 30, 60, 64], dtype=torch.int32)
    ids = {"sources_S": torch.zeros(3, dtype=torch.int32), "documents_S": torch.zeros(3, dtype=torch.int64)}
    replace(ROW, cu_seqlens=borders, parents_S=torch.full((3,), -1, dtype=torch.int32), **ids)
    with pytest.raises(AssertionError):
        replace(ROW, cu_seqlens=borders, parents_S=parents, **ids)
