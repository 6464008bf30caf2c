"""A prompt held once for all its replies is the same computation as one document per reply.

The truth is the same model on every prompt and reply as a document of its own: losses, gradient norms and gradients
agree, on one rank, over context-parallel ranks that cut prompts and replies anywhere, and beside ordinary documents.
"""

import dataclasses

import pytest
import torch

from osim_core.batch import PackedBatch
from osim_core.config import LayoutConfig
from osim_core.rollout.groups import Group, shared_prompt_row
from tests.parallel.cases import train
from tests.parallel.test_layouts import worst_difference
from tests.support.models import TINY_QWEN3

LENGTH = 96


def random_group(generator: torch.Generator, prompt: int, replies: list[int], id: int = 0) -> Group:
    def tokens(count: int) -> list[int]:
        return torch.randint(TINY_QWEN3.vocab_size, (count,), generator=generator).tolist()

    return Group(
        prompt=tokens(prompt),
        replies=[tokens(length) for length in replies],
        weights=[torch.rand(length, generator=generator).tolist() for length in replies],
        source=id % 3,
        id=id,
    )


def unshared(groups: list[Group], length: int) -> list[PackedBatch]:
    """One row per reply: prompt and reply as one document, then padding."""
    rows = []
    for group in groups:
        for reply, weights in zip(group.replies, group.weights, strict=True):
            document = [*group.prompt, *reply]
            rest = length - len(document)
            shift = len(group.prompt) - 1
            rows.append(
                PackedBatch(
                    tokens_T=torch.tensor(document + [0] * rest),
                    labels_T=torch.tensor(document[1:] + [0] * (rest + 1)),
                    positions_T=torch.tensor([*range(len(document)), *range(rest)]),
                    cu_seqlens=torch.tensor([0, len(document), length], dtype=torch.int32),
                    weights={"ce": torch.tensor([0.0] * shift + list(weights) + [0.0] * (rest + 1))},
                    sources_S=torch.tensor([group.source, -1], dtype=torch.int32),
                    documents_S=torch.tensor([group.id, -1]),
                )
            )
    return rows


GENERATOR = torch.Generator().manual_seed(3)
GROUPS = [
    random_group(GENERATOR, prompt=17, replies=[5, 9, 1], id=0),
    random_group(GENERATOR, prompt=1, replies=[4, 7], id=1),  # nothing left to share
    random_group(GENERATOR, prompt=9, replies=[13], id=2),
]


@pytest.fixture(scope="module")
def truth(workers):
    layout = LayoutConfig(distributed_optimizer=False)
    return workers(1).run(train, model=TINY_QWEN3, layout=layout, rows=unshared(GROUPS, 48), gradients=True)[0]


def assert_equal(result: dict, truth: dict) -> None:
    assert result["loss"] == pytest.approx(truth["loss"], abs=5e-6)
    assert result["norm"] == pytest.approx(truth["norm"], rel=2e-5)
    for mine, other in zip(result["by_source"], truth["by_source"], strict=True):
        assert mine == pytest.approx(other, abs=5e-6)
    difference, name = worst_difference(result["gradients"], truth["gradients"])
    assert difference < 2e-5, name


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (1, LayoutConfig(distributed_optimizer=False)),
        (2, LayoutConfig(context=2, distributed_optimizer=False)),
        (2, LayoutConfig(tensor=2, sequence_parallel=True)),
    ],
    ids=["one rank", "cp2", "tp2-sp"],
)
def test_shared_prompt_equals_one_document_per_reply(workers, truth, ranks, layout):
    rows = [shared_prompt_row(GROUPS, LENGTH, "ce")]
    for result in workers(ranks).run(train, model=TINY_QWEN3, layout=layout, rows=rows, gradients=True):
        assert_equal(result, truth)


def test_a_row_that_forgets_its_parents_is_another_computation(workers, truth):
    row = shared_prompt_row(GROUPS, LENGTH, "ce")
    alone = dataclasses.replace(row, parents_S=torch.full_like(row.parents_S, -1))
    layout = LayoutConfig(distributed_optimizer=False)
    result = workers(1).run(train, model=TINY_QWEN3, layout=layout, rows=[alone], gradients=True)[0]
    with pytest.raises(AssertionError):
        assert_equal(result, truth)


def test_tokens_of_a_group_of_eight():
    group = Group([1] * 2000, [[2] * 500] * 8, [[1.0] * 500] * 8)
    unshared_tokens = sum(len(group.prompt) + len(reply) for reply in group.replies)
    assert (group.num_tokens, unshared_tokens) == (6007, 20_000)
    assert unshared_tokens / group.num_tokens > 3.2


def test_row_of_a_group():
    row = shared_prompt_row([Group([5, 6, 7], [[8, 9], [10]], [[0.5, 2.0], [1.0]], source=1, id=4)], 9, "policy")
    assert row.tokens_T.tolist() == [5, 6, 7, 8, 9, 7, 10, 0, 0]
    assert row.labels_T.tolist() == [6, 7, 8, 9, 0, 10, 0, 0, 0]
    assert row.positions_T.tolist() == [0, 1, 2, 3, 4, 2, 3, 0, 1]
    assert row.weights["policy"].tolist() == [0, 0, 0.5, 2.0, 0, 1.0, 0, 0, 0]
    assert row.cu_seqlens.tolist() == [0, 2, 5, 7, 9]
    assert row.parents_S.tolist() == [-1, 0, 0, -1]
    assert row.sources_S.tolist() == [1, 1, 1, -1] and row.documents_S.tolist() == [4, 4, 4, -1]


@pytest.mark.parametrize(
    ("prompt", "replies", "weights", "complaint"),
    [
        ([], [[1]], [[1.0]], "at least one token"),
        ([1], [], [], "at least one token"),
        ([1], [[1], []], [[1.0], []], "at least one token"),
        ([1], [[1, 2]], [[1.0]], "one loss weight"),
    ],
)
def test_bad_groups_are_named(prompt, replies, weights, complaint):
    with pytest.raises(ValueError, match=complaint):
        Group(prompt, replies, weights, id=7)


def test_a_row_too_short_is_named():
    with pytest.raises(ValueError, match="do not fit a row of 4"):
        shared_prompt_row([Group([1, 2, 3], [[4, 5]], [[1.0, 1.0]])], 4, "policy")
