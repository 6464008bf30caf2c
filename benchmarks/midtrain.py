"""Midtraining throughput: packed rows against padded batches and against transformers' Trainer, in one process.

    python -m benchmarks midtrain [small-cpu | tiny-cpu] [--repeats 5] [--threads 1] [--out FILE]

Every contender trains the same model (Megatron-core or transformers, same first weights, fp32, AdamW, clipping) on
the same documents of the packaged dialogue, step by step:

  packed             PackedLoader's rows through Learner.update, as recipes/midtrain.py runs them
  padded to longest  the step's documents as one batch, each padded to the longest of them, through the same Learner
                     and kernels: a padded batch is a PackedBatch whose segments are the padded documents
  padded to row      the same, padded to the row length: a collator with one fixed width
  trainer            transformers' Trainer, its eager model with SDPA and its padding collator (to the longest), -100
                     off the loss spans

Documents longer than a row are cut to it for everybody (a padded pipeline truncates; the recipe would split them, for
which padding has no counterpart). Turns alternate step by step, so a busy machine slows all alike. Before anything
is timed, the contenders' losses on the first step must agree to 1e-5, and the Learners' gradient norms to 1e-4;
otherwise no row is written. Figures count real tokens only; CPU seconds are the robust ones on a shared machine.

Steps differ widely (a row is one long document or thirty short ones), so the timed ones are not the first but an
even sample of the epoch, ordered by documents per step; each row also says what padding the whole epoch would have.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.ledger import quantiles, record
from osim_core.batch import PackedBatch
from osim_core.config import DataConfig, LayoutConfig, ModelConfig, OptimizerConfig, TrainConfig
from osim_core.corpus.loader import PackedLoader
from osim_core.corpus.plan import open_plan
from osim_core.corpus.prepare import prepare
from osim_core.corpus.shards import ShardSet
from osim_core.parallel import layout
from recipes.configs import tiny_cpu

SEED = 1234
OPTIMIZER = OptimizerConfig(learning_rate=1e-4, schedule="constant")
PACKED, LONGEST, ROW, TRAINER = "packed", "padded to longest", "padded to row", "trainer"


@dataclass(frozen=True)
class Case:
    """A model, its data and how many rows a step packs. data.overlong must be "truncate"."""

    name: str
    model: ModelConfig
    data: DataConfig
    rows: int
    compute: str  # what the time goes into, for the reader of the ledger


def small_cpu() -> Case:
    """The tiny recipe's family and data with a model wide enough that matrix products dominate on a CPU."""
    recipe = tiny_cpu()
    return Case(
        "small-cpu",
        replace(
            recipe.model,
            num_layers=2,  # the ratio of the contenders is a layer's; two leave time for more steps
            hidden_size=256,
            ffn_hidden_size=768,
            num_heads=8,
            num_kv_heads=4,
            vocab_size=1024,
            max_position_embeddings=2048,
        ),
        # whole conversations: the recipe cuts its documents at 256 bytes, which leaves padding little to waste
        replace(
            recipe.data, tokenizer_vocab_size=1024, sequence_length=2048, document_length=None, overlong="truncate"
        ),
        rows=4,
        compute="matrix products dominate",
    )


def tiny() -> Case:
    """The recipe's own model and row; most of its documents are cut to one length, so padding has little to waste."""
    recipe = tiny_cpu()
    data = replace(recipe.data, overlong="truncate")
    return Case(recipe.name, recipe.model, data, recipe.train.global_batch_rows, "elementwise work weighs in")


CASES = {case.name: case for case in (small_cpu(), tiny())}


class Document(NamedTuple):
    """One document of a step, [n] each; weights are of predicting the label that stands at the same index."""

    tokens: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    source: int


class Turn(NamedTuple):
    """One contender's step."""

    wall: float
    cpu: float


def main(argv: list[str]) -> None:
    """Measure every contender, write the rows and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks midtrain", description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", default="small-cpu", choices=CASES)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each contender")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="another file for the rows")
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1 or arguments.warm_up < 1:
        raise ValueError("--repeats and --warm-up must be at least 1: the first step is checked, not timed")
    case = CASES[arguments.config]
    folder = prepare(case.data)
    torch.set_num_threads(arguments.threads)
    layout.initialize(LayoutConfig(), SEED)
    try:
        results = measure(case, folder, arguments.repeats, arguments.warm_up)
    finally:
        layout.shutdown()
    shape = {
        "config": case.name,
        "model": {
            name: getattr(case.model, name)
            for name in ("family", "num_layers", "hidden_size", "ffn_hidden_size", "num_heads", "num_kv_heads")
        },
        "vocab_size": case.model.vocab_size,
        "compute": case.compute,
        "sequence_length": case.data.sequence_length,
        "rows_per_step": case.rows,
        "dtype": "float32",
        "threads": arguments.threads,
    }
    table = Table(
        "contender", "real tokens / s (p20 p50 p80)", "/ CPU s", "loss tokens / s", "padding", "time / packed"
    )
    for name, result in results.items():
        record("midtrain", {"contender": name, **shape}, result, arguments.out)
        table.add_row(
            name,
            " ".join(f"{result[f'tokens_per_second_p{q}']:,.0f}" for q in (20, 50, 80)),
            f"{result['tokens_per_cpu_second_p50']:,.0f}",
            f"{result['loss_tokens_per_second_p50']:,.0f}",
            f"{result['padding_share']:.1%}",
            f"{result['time_over_packed']:.2f} (CPU {result['cpu_time_over_packed']:.2f})",
        )
    Console().print(table)


def measure(case: Case, folder: Path, repeats: int, warm_up: int) -> dict[str, dict[str, Any]]:
    """contender -> figures. `folder` holds prepared shards; needs an initialised layout of one rank.

    Raises ValueError when the contenders do not compute the same loss.
    """
    assert case.data.overlong == "truncate"
    width = case.data.sequence_length
    shards = ShardSet.open(folder, "train", vocab_size=case.model.vocab_size)
    loader = PackedLoader(
        shards,
        case.data,
        split="train",
        sequence_length=width,
        global_batch_rows=case.rows,
        seed=SEED,
        rank=0,
        world=1,
    )
    documents, longest, epoch_padding = survey(case, shards)
    chosen = [*range(warm_up), *even_sample(documents, repeats)]
    steps = [documents_of(loader.batch(step)) for step in chosen]
    feeds: dict[str, Callable[[int], list[PackedBatch]]] = {
        PACKED: lambda step: loader.batch(chosen[step]),
        LONGEST: lambda step: [pad(steps[step])],
        ROW: lambda step: [pad(steps[step], width)],
    }
    learners = {name: make_learner(case, len(shards.source_names), len(steps)) for name in feeds}
    model = hugging_face_model(case.model)
    turns: dict[str, list[Turn]] = {name: [] for name in (*feeds, TRAINER)}
    first_losses = {TRAINER: trainer_loss(model, steps[0])}

    def take_turns(step: int, trainer: Turn) -> None:
        """The other contenders' turns at a step the Trainer has just done."""
        turns[TRAINER].append(trainer)
        norms = {}
        for name, learner in learners.items():
            wall, cpu = time.perf_counter(), time.process_time()
            outcome = learner.update(feeds[name](step), step)
            turns[name].append(Turn(time.perf_counter() - wall, time.process_time() - cpu))
            first_losses.setdefault(name, outcome.losses.mean)
            norms[name] = outcome.gradient_norm
        if step == 0:
            check_equal("loss", first_losses, 1e-5)
            check_equal("gradient norm", norms, 1e-4)

    run_trainer(model, steps, take_turns)

    timed = slice(warm_up, None)
    tokens = np.array([sum(len(document.tokens) for document in step) for step in steps[timed]])
    loss_tokens = np.array([sum(float(document.weights.sum()) for document in step) for step in steps[timed]])
    to_longest = (documents * longest)[chosen[timed]]
    slots = {
        PACKED: np.full(repeats, case.rows * width),
        LONGEST: to_longest,
        ROW: documents[chosen[timed]] * width,
        TRAINER: to_longest,
    }
    packed = np.array(turns[PACKED][timed])
    statistics = loader.statistics
    results = {}
    for name in turns:
        seconds = np.array(turns[name][timed])  # [repeats, (wall, cpu)]
        wall, cpu = seconds.T
        results[name] = {
            **percentiles("tokens_per_second", tokens / wall),
            **percentiles("loss_tokens_per_second", loss_tokens / wall),
            **percentiles("tokens_per_cpu_second", tokens / cpu),
            "slots_per_cpu_second_p50": float(np.median(slots[name] / cpu)),
            "padding_share": float(1 - tokens.sum() / slots[name].sum()),
            "epoch_padding_share": epoch_padding[name],
            "time_over_packed": float(wall.sum() / packed[:, 0].sum()),
            "cpu_time_over_packed": float(cpu.sum() / packed[:, 1].sum()),
            "tokens_per_step": float(tokens.mean()),
            "corpus_tokens_cut": statistics["dropped_tokens"] / (statistics["tokens"] + statistics["dropped_tokens"]),
            "documents_per_step": float(np.mean([len(step) for step in steps[timed]])),
            "first_loss": first_losses[name],
            **quantiles(wall),
            "load_average": os.getloadavg()[0],
        }
    return results


def survey(case: Case, shards: ShardSet) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Of each whole step of the epoch: its documents and the longest one's tokens; and each contender's padding."""
    width = case.data.sequence_length
    plan = open_plan(
        case.data.cache,
        shards,
        sequence_length=width,
        overlong=case.data.overlong,
        mix=case.data.sources,
        seed=SEED,
        epoch=0,
        document_length=case.data.document_length,
    )
    borders = plan.row_offsets[:: case.rows]  # of steps, as pieces; an incomplete last step is left out
    lengths = (plan.pieces["stop"] - plan.pieces["start"])[: borders[-1]]
    documents, longest = np.diff(borders), np.maximum.reduceat(lengths, borders[:-1])
    slots = {
        PACKED: len(documents) * case.rows * width,
        LONGEST: int((documents * longest).sum()),
        ROW: len(lengths) * width,
    }
    padding = {name: float(1 - lengths.sum() / total) for name, total in slots.items()}
    return documents, longest, padding | {TRAINER: padding[LONGEST]}


def even_sample(values: np.ndarray, count: int) -> list[int]:
    """Indices of the middles of `count` equal strata of the sorted values."""
    order = np.argsort(values, kind="stable")
    middles = ((np.arange(count) + 0.5) * len(values) / count).astype(int)
    return order[middles].tolist()


def percentiles(name: str, values: np.ndarray) -> dict[str, float]:
    """20th, 50th and 80th percentile as name_p20, ..."""
    return {f"{name}_p{q}": float(np.percentile(values, q)) for q in (20, 50, 80)}


def check_equal(what: str, values: dict[str, float], tolerance: float) -> None:
    """Raise ValueError unless every contender's value is the packed one's, relatively."""
    for name, value in values.items():
        if not abs(value - values[PACKED]) <= tolerance * abs(values[PACKED]):
            raise ValueError(
                f"{what} of the first step: {name} {value!r}, packed {values[PACKED]!r}; "
                "the contenders do not do the same work, so no speed is reported"
            )


def documents_of(batches: Sequence[PackedBatch]) -> list[Document]:
    """The documents of packed rows, padding left out."""
    documents = []
    for batch in batches:
        borders = batch.cu_seqlens.tolist()
        for start, stop, source in zip(borders[:-1], borders[1:], batch.sources_S.tolist(), strict=True):
            if source >= 0:
                here = slice(start, stop)
                fields = (batch.tokens_T[here], batch.labels_T[here], batch.weights["ce"][here])
                documents.append(Document(*fields, source))
    return documents


def pad(documents: Sequence[Document], width: int | None = None) -> PackedBatch:
    """A padded batch (to the longest document, or to `width`) in one row, whose segments are the padded documents.

    Padding follows the document, so a causal model computes it in vain; it weighs nothing in the loss.
    """
    width = width or max(len(document.tokens) for document in documents)
    shape = (len(documents), width)
    tokens, labels = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    weights = torch.zeros(shape)
    for number, document in enumerate(documents):
        used = slice(len(document.tokens))
        tokens[number, used], labels[number, used] = document.tokens, document.labels
        weights[number, used] = document.weights
    return PackedBatch(
        tokens_T=tokens.flatten(),
        labels_T=labels.flatten(),
        positions_T=torch.arange(width).repeat(len(documents)),
        cu_seqlens=torch.arange(0, tokens.numel() + 1, width, dtype=torch.int32),
        weights={"ce": weights.flatten()},
        sources_S=torch.tensor([document.source for document in documents], dtype=torch.int32),
        documents_S=torch.arange(len(documents)),
    )


def features_of(documents: Sequence[Document]) -> list[dict[str, list[int]]]:
    """The documents as transformers' collators take them: labels stand on the token itself, -100 where no loss is."""
    features = []
    for tokens, labels, weights, _ in documents:
        targets = labels.where(weights > 0, -100)[:-1].tolist()
        features.append({"input_ids": tokens.tolist(), "labels": [-100, *targets]})
    return features


def make_learner(case: Case, num_sources: int, steps: int):
    """A Learner with the first weights that every contender starts from."""
    from osim_core.checkpoint.hf import RandomWeights, load_weights  # megatron-core: after layout.initialize
    from osim_core.update.learner import Learner

    train = TrainConfig(steps=steps, global_batch_rows=case.rows, precision="fp32")
    learner = Learner(case.model, LayoutConfig(), OPTIMIZER, train, num_sources, dump=Path("runs/benchmark"))
    load_weights(learner.chunks, RandomWeights(case.model, SEED), case.model)
    learner.weights_loaded()
    return learner


def hugging_face_model(model: ModelConfig) -> torch.nn.Module:
    """transformers' model with those weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from osim_core.checkpoint.hf import RandomWeights, tensor_shapes
    from osim_core.model.hf_config import model_config_to_hf

    config = AutoConfig.for_model(**model_config_to_hf(model, "float32"))
    built = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = RandomWeights(model, SEED)
    built.load_state_dict({name: weights(name) for name in tensor_shapes(model)}, strict=not model.tied_embeddings)
    return built


class _Steps(torch.utils.data.IterableDataset):
    """A step's documents as one item, so that the Trainer sees exactly the packed steps' documents."""

    def __init__(self, steps: Sequence[Sequence[Document]]) -> None:
        self.steps = steps

    def __iter__(self) -> Iterator[list[dict[str, list[int]]]]:
        return map(features_of, self.steps)


def collator() -> Callable[[list], dict[str, torch.Tensor]]:
    """transformers' padding collator; token 0 pads, as in our rows."""
    import tokenizers
    from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return DataCollatorForSeq2Seq(PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>"))


@torch.no_grad()
def trainer_loss(model: torch.nn.Module, documents: Sequence[Document]) -> float:
    """What the Trainer will call the loss of these documents."""
    batch = collator()(features_of(documents))
    return model(**batch, num_items_in_batch=(batch["labels"] != -100).sum()).loss.item()


def run_trainer(
    model: torch.nn.Module, steps: Sequence[Sequence[Document]], after_step: Callable[[int, Turn], None]
) -> None:
    """Train with transformers' Trainer, calling after_step(step, its time) between its steps.

    The Trainer owns its loop, so the others take their turns inside its callback; its own time runs from the end of
    one turn to the end of its next step, and so holds all that it does for a step.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    collate = collator()

    class Turns(TrainerCallback):
        def on_step_end(self, args, state, control, **_) -> None:
            turn = Turn(time.perf_counter() - self.wall, time.process_time() - self.cpu)
            after_step(state.global_step - 1, turn)
            self.resume()

        def on_train_begin(self, args, state, control, **_) -> None:
            self.resume()

        def resume(self) -> None:
            self.wall, self.cpu = time.perf_counter(), time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=len(steps),
            per_device_train_batch_size=1,  # one item of _Steps: all documents of a step
            learning_rate=OPTIMIZER.learning_rate,
            lr_scheduler_type="constant",
            adam_beta1=OPTIMIZER.beta1,
            adam_beta2=OPTIMIZER.beta2,
            adam_epsilon=OPTIMIZER.eps,
            weight_decay=OPTIMIZER.weight_decay,
            max_grad_norm=OPTIMIZER.clip_norm,
            remove_unused_columns=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=_Steps(steps),
            data_collator=lambda items: collate(items[0]),
            callbacks=[Turns()],
        )
        trainer.remove_callback(PrinterCallback)  # its last line would stand in the middle of ours
        trainer.train()
