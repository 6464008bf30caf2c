"""A checkpoint holds all of a run: what resumes from it is the run that was never stopped, in any layout."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from osim_core.config import LayoutConfig
from tests.checkpoint.cases import draws_around_a_save, refusal, resume_and_train, train_and_save
from tests.support.models import TINY_QWEN3, random_rows

ROWS = random_rows(rows=4, length=64, vocab_size=TINY_QWEN3.vocab_size)
SAVED, STEPS = 3, 6
TP2_DP2 = LayoutConfig(tensor=2, sequence_parallel=True)
OTHERS = {
    "tp1": (1, LayoutConfig()),
    "pp2": (2, LayoutConfig(pipeline=2)),
    "dp2": (2, LayoutConfig()),
}


@pytest.fixture(scope="module")
def four_ranks(workers, tmp_path_factory) -> tuple[Path, dict]:
    """A run on TP2 x DP2 with the distributed optimizer: the folder with its save, and the run to its end.

    The save is asynchronous and under way while the next updates change every tensor it is writing.
    """
    folder = tmp_path_factory.mktemp("four") / "checkpoints"
    arguments = {"layout": TP2_DP2, "rows": ROWS, "save_at": [SAVED], "steps": STEPS}
    return folder, workers(4).run(train_and_save, folder=folder, model=TINY_QWEN3, **arguments)[0]


@pytest.fixture(scope="module")
def one_rank(workers, tmp_path_factory) -> tuple[Path, dict]:
    """The same on one rank, keeping only the newest two of its three saves."""
    folder = tmp_path_factory.mktemp("one") / "checkpoints"
    arguments = {"layout": LayoutConfig(), "rows": ROWS, "save_at": [1, 2, SAVED], "steps": STEPS, "keep": 2}
    return folder, workers(1).run(train_and_save, folder=folder, model=TINY_QWEN3, **arguments)[0]


def assert_equal_weights(mine: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> None:
    assert mine.keys() == truth.keys()
    for name, tensor in truth.items():
        assert torch.equal(mine[name], tensor), name


def test_the_same_layout_continues_bit_for_bit(workers, four_ranks):
    folder, run = four_ranks
    for resumed in workers(4).run(
        resume_and_train, folder=folder, model=TINY_QWEN3, layout=TP2_DP2, rows=ROWS, steps=6
    ):
        assert resumed["start"] == SAVED
        assert resumed["loss"] == run["loss"][SAVED:]
        assert_equal_weights(resumed["weights"], run["weights"])


@pytest.mark.parametrize("layout", OTHERS)
def test_another_layout_continues_within_tolerance(workers, four_ranks, layout):
    folder, run = four_ranks
    size, config = OTHERS[layout]
    results = workers(size).run(
        resume_and_train, folder=folder, model=TINY_QWEN3, layout=config, rows=ROWS, steps=STEPS
    )
    assert run["loss"][-1] < run["loss"][SAVED] - 0.02  # the updates compared here do move the loss
    for resumed in results:
        assert resumed["start"] == SAVED
        assert resumed["loss"] == pytest.approx(run["loss"][SAVED:], abs=5e-6)
        assert resumed["adam_steps"] == {STEPS}  # megatron-core alone would count one shared step per parameter


def test_the_newest_are_kept_and_leftovers_of_a_kill_removed(workers, one_rank):
    folder, run = one_rank
    (folder / ".step-00000009.partial").mkdir()
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-00000002", "step-00000003"]
    (resumed,) = workers(1).run(
        resume_and_train, folder=folder, model=TINY_QWEN3, layout=LayoutConfig(), rows=ROWS, steps=STEPS
    )
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", "step-00000003"]
    assert resumed["start"] == SAVED and resumed["loss"] == run["loss"][SAVED:]
    assert resumed["adam_steps"] == {STEPS}


def test_synchronous_saves_hold_the_same(workers, one_rank, tmp_path):
    _, run = one_rank
    arguments = {"model": TINY_QWEN3, "layout": LayoutConfig(), "rows": ROWS, "steps": STEPS}
    workers(1).run(train_and_save, folder=tmp_path, save_at=[SAVED], asynchronous=False, **arguments)
    (resumed,) = workers(1).run(resume_and_train, folder=tmp_path, **arguments)
    assert resumed["loss"] == run["loss"][SAVED:]
    assert_equal_weights(resumed["weights"], run["weights"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model": replace(TINY_QWEN3, ffn_hidden_size=192)},
            "holds another model: ffn_hidden_size is 160 there and 192",
        ),
        ({"model": replace(TINY_QWEN3, tied_embeddings=True)}, "tied_embeddings is False there and True"),
        ({"layout": LayoutConfig(distributed_optimizer=False)}, "layout.distributed_optimizer = True"),
    ],
)
def test_a_checkpoint_of_another_run_is_one_clear_line(workers, one_rank, changes, words):
    folder, _ = one_rank
    arguments = {
        "model": TINY_QWEN3,
        "layout": LayoutConfig(),
        "rows": ROWS,
        "steps": STEPS,
        "folder": folder,
        **changes,
    }
    (message,) = workers(1).run(refusal, call=resume_and_train, **arguments)
    assert "\n" not in message and str(folder / "step-00000003") in message and words in message, message


def test_random_streams_go_on_bit_for_bit_on_every_rank(workers, tmp_path):
    layout = LayoutConfig(tensor=2)
    results = workers(2).run(draws_around_a_save, folder=tmp_path, model=TINY_QWEN3, layout=layout, rows=ROWS)
    for saved, resumed in results:
        assert saved == resumed
    first, second = (saved for saved, _ in results)
    assert first[0] != second[0] and first[3] != second[3]  # the ranks' own streams, not one rank's for both
