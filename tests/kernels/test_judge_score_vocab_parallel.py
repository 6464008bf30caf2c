"""Judge scoring over a vocabulary split between gloo ranks equals one rank holding it whole, label rows anywhere."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import triton

from osim_kernels.judge_score import triton as ours
from osim_kernels.judge_score.gathered import judge_score_gathered
from osim_kernels.proof import interpreter
from tests.support.judges import FIGURES, RUBRICS, ask, assert_scores_close, by_hand

FORMS = {"gathered": judge_score_gathered, "triton": ours.judge_score_triton}
ITEMS, VOCAB, PADDING = 5, 54, 6  # of 60 rows, 30 or 15 a rank: with four the last holds padding and three real rows
CASES = {
    "mixed": {"labels": RUBRICS["mixed"], "min_mass": 0.15},
    "no mass": {"labels": RUBRICS["single tokens"], "min_mass": None},
    "labels on one rank": {"labels": RUBRICS["yes or no"], "min_mass": 0.05},
}


def call_of(name):
    torch.manual_seed(11)
    return ask(**CASES[name], items=ITEMS, vocab=VOCAB, padding=PADDING)


def on_every_rank():
    if triton.knobs.runtime.interpret:
        interpreter.install()
    rank, size = dist.get_rank(), dist.get_world_size()
    rows = (VOCAB + PADDING) // size
    found = {}
    for name in CASES:
        call = call_of(name)
        shard = {"head_VD": call["head_VD"][rank * rows : (rank + 1) * rows].clone(), "vocab_start": rank * rows}
        for form, compute in FORMS.items():
            found[name, form] = compute(**call | shard | {"group": dist.group.WORLD})
    return {key: {name: getattr(scores, name) for name in ("reason_IJ", *FIGURES)} for key, scores in found.items()}


@pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="gloo ranks hold CPU tensors")
@pytest.mark.parametrize("size", [2, 4])
def test_split_vocabulary_equals_one_rank(workers, size):
    ranks = workers(size).run(on_every_rank)
    for name in CASES:
        expected = by_hand(**call_of(name))
        for form in FORMS:
            parts = [rank[name, form] for rank in ranks]
            assert_scores_close(replace(expected, **parts[0]), expected, 1e-5)
            for part in parts[1:]:
                for figure, values in part.items():
                    torch.testing.assert_close(values, parts[0][figure], rtol=0, atol=0, equal_nan=True)
