"""Tokens per second that one process reads from disk as ready training rows, in one run on the same documents.

    python -m benchmarks loader [--tokens 20000000] [--length 4096] [--out FILE]

Contenders, each single-threaded, warm page cache, synthetic documents (lognormal lengths, seeded):
  osim          PackedLoader.batch: whole documents, cu_seqlens, loss weights per token, sources, ranks balanced
  megatron      megatron.core GPTDataset with inter_document_masking: fixed rows cut anywhere, cu_seqlens, mask of ones
  megatron-raw  the same without document borders; attention would cross documents
  litdata       StreamingDataset with TokensLoader: fixed blocks of tokens, nothing else
"documents cut" is the share that a row border tears apart. Only osim honours loss spans; litdata's figure is little
more than a view of the map, before any label, position or border is made. Passes alternate; CPU seconds (all threads)
are the robust figure on a shared machine, wall seconds and the load average are recorded beside them.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.ledger import record
from osim_core.config import DataConfig
from osim_core.corpus.conversation import RenderedDocument
from osim_core.corpus.loader import PackedLoader
from osim_core.corpus.shards import ShardSet, ShardWriter
from osim_core.parallel import device

VOCABULARY = 151_936
ROWS_PER_STEP = 16
# a contender's pass over the corpus: yields the number of real tokens in each row that it delivers
Pass = Callable[[], Iterator[int]]


def main(argv: list[str]) -> None:
    """Measure every loader, write the rows and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks loader", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = _write_corpus(folder / "shards", arguments.tokens)
        contenders, cut = _contenders(folder, shards, arguments.length)
        speeds = _measure(contenders, arguments.passes)
    table = Table("loader", "M tokens / CPU s", "M tokens / s (wall)", "documents cut")
    for name, passes in speeds.items():
        cpu, wall = (np.percentile([p[key] for p in passes], [20, 50, 80]) for key in ("cpu", "wall"))
        result = {
            **{f"tokens_per_cpu_second_p{q}": float(v) for q, v in zip((20, 50, 80), cpu, strict=True)},
            **{f"tokens_per_second_p{q}": float(v) for q, v in zip((20, 50, 80), wall, strict=True)},
            "documents_cut": cut[name],
            "load_average": os.getloadavg()[0],
        }
        case = {
            "loader": name,
            "tokens": arguments.tokens,
            "length": arguments.length,
            "dtype": "int32",
            "threads": 1,
        }
        record("loader", case, result, arguments.out)
        figures = [f"{cpu[1] / 1e6:.1f}", f"{wall[1] / 1e6:.1f}", f"{cut[name]:.1%}"]
        table.add_row(name, *figures)
    Console().print(table)


def _write_corpus(folder: Path, tokens: int) -> ShardSet:
    """Documents of about 450 tokens in turns of about 50, loss on every other turn."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    with ShardWriter(folder, "train", VOCABULARY, ["synthetic"], tokens) as writer:
        written = number = 0
        while written < tokens:
            length = int(np.clip(rng.lognormal(5.6, 1.0), 8, 3_500))
            turns = np.arange(0, length, 50, dtype=np.int32)
            spans = np.stack([turns, np.append(turns[1:], length)], axis=1)[1::2]
            ids = rng.integers(1, VOCABULARY, length, dtype=np.int32)
            writer.add(RenderedDocument(f"{number}", "synthetic", ids, spans, turns))
            written, number = written + length, number + 1
        entries = writer.close()
    return ShardSet.open(folder, "train", manifest={"sources": ["synthetic"], "shards": {"train": entries}})


def _contenders(folder: Path, shards: ShardSet, length: int) -> tuple[dict[str, Pass], dict[str, float]]:
    loader = PackedLoader(
        shards,
        DataConfig(cache=str(folder)),
        split="train",
        sequence_length=length,
        global_batch_rows=ROWS_PER_STEP,
        seed=0,
        rank=0,
        world=1,
    )

    def osim() -> Iterator[int]:
        for step in range(loader.steps_per_epoch - 1):
            for batch in loader.batch(step):
                yield length - int((batch.cu_seqlens.diff()[batch.documents_S < 0]).sum())

    bordered, raw = (_gpt_dataset(shards, folder, length, masking) for masking in (True, False))
    blocks = _litdata(folder / "litdata", shards, length)
    contenders = {
        "osim": osim,
        "megatron": lambda: (len(bordered[row]["tokens"]) for row in range(len(bordered))),
        "megatron-raw": lambda: (len(raw[row]["tokens"]) for row in range(len(raw))),
        "litdata": lambda: (len(block) for block in blocks),
    }
    ends = np.cumsum(shards.lengths, dtype=np.int64)
    torn = float(((ends - 1) // length != (ends - shards.lengths) // length).mean())
    ours = loader.statistics["pieces"] / loader.statistics["documents"] - 1
    return contenders, {"osim": ours, "megatron": torn, "megatron-raw": torn, "litdata": torn}


def _gpt_dataset(shards: ShardSet, cache: Path, length: int, inter_document_masking: bool):
    """Megatron's own dataset over our .bin/.idx; imported late, because megatron needs the device module first."""
    device.install()
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=length,
        split="1",
        path_to_cache=str(cache / "megatron"),
        tokenizer=_Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        inter_document_masking=inter_document_masking,
    )
    prefix = str(shards.shards[0].index.bin_path.with_suffix(""))
    indexed = GPTDataset.build_low_level_dataset(prefix, config)
    return GPTDataset(indexed, prefix, np.arange(len(shards), dtype=np.int32), None, Split.train, config)


class _Tokenizer:
    """What GPTDataset asks of a tokenizer when the text is already tokens."""

    vocab_size, eod, pad = VOCABULARY, 0, 0
    unique_identifiers: ClassVar[dict] = {"name": "synthetic"}


def _litdata(folder: Path, shards: ShardSet, length: int):
    """The same tokens as a litdata dataset of fixed blocks."""
    from litdata import StreamingDataset, TokensLoader
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder), chunk_bytes="64MB", item_loader=TokensLoader(length))
    for number in range(len(shards)):
        cache[number] = torch.from_numpy(shards.tokens(number).astype(np.int32))
    cache.done()
    cache.merge()
    return StreamingDataset(str(folder), item_loader=TokensLoader(length))


def _measure(contenders: dict[str, Pass], passes: int) -> dict[str, list[dict[str, float]]]:
    """Tokens per second of each pass; a first, unmeasured pass warms caches, and contenders take turns."""
    speeds = {name: [] for name in contenders}
    for number in range(passes + 1):
        for name, rows in contenders.items():
            cpu, wall = time.process_time(), time.perf_counter()
            counts = list(rows())
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            tokens = sum(counts)
            if number:
                speeds[name].append({"cpu": tokens / cpu, "wall": tokens / wall})
    return speeds
