"""Eighth stage: each chunk's sides as token documents in shards, a shard per chunk and split.

Documents come from the token store, which tokenises what it has not seen; row length, mixture and seed are decided
later (plan.py), so they never cost a second tokenisation.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from osim_core.corpus import tokenizer as tokenizers
from osim_core.corpus.conversation import RenderedDocument
from osim_core.corpus.render import Renderer
from osim_core.corpus.shards import ShardWriter
from osim_core.corpus.stage import Counts
from osim_core.corpus.stages import VERSION
from osim_core.corpus.stages.divide import ENDED, NAMES, NEITHER, TRAIN, VALIDATION, Divided
from osim_core.corpus.stages.pipeline import Done
from osim_core.corpus.stages.tables import AUDIT, ROWS_AT_A_TIME, TableWriter
from osim_core.corpus.stages.token_store import TokenStore, document_hash

COUNTED = ("documents", "tokens", "loss_tokens")


@dataclass(frozen=True)
class TokeniseJob:
    """One chunk; the tokenizer's folder and chat format; where the chunk's token store is; names of all sources."""

    part: Divided
    tokenizer: Path
    chat_format: str
    store: Path
    sources: tuple[str, ...]


def tokenise(job: TokeniseJob, folder: Path, name: str) -> Counts:
    """Write the chunk's shards and its audit table. Counts: shards {split: entries}, statistics {source: {split:
    {documents, tokens, loss_tokens}}}, lengths {source: {power of two: documents}}, masked_turns."""
    renderer = _renderer(job.tokenizer, job.chat_format)
    store = TokenStore(job.store, renderer.tokenizer.vocab_size)
    store.extend((side.conversation for split, side in job.part.sides() if split > NEITHER), renderer)
    statistics: dict[str, dict[str, Counter[str]]] = {}
    lengths: dict[str, Counter[str]] = {}
    masked_turns = 0
    with ExitStack() as stack:
        vocab_size, names = renderer.tokenizer.vocab_size, list(job.sources)
        shards = {
            split: stack.enter_context(
                ShardWriter(folder, f"{NAMES[split]}-{name}", vocab_size, names, max(job.part.last - job.part.first, 1))
            )
            for split in (TRAIN, VALIDATION)
        }
        audit = stack.enter_context(TableWriter(folder / f"{name}.audit.parquet"))
        for (split, side), row in zip(job.part.sides(), _rows(job.part.table), strict=True):
            masked = row.pop("masked")
            if split > NEITHER:
                digest = document_hash(side.conversation)
                document = without_loss(store.get(digest, side.conversation), masked)
                shards[split].add(document)
                _count(statistics, lengths, document, NAMES[split])
                masked_turns += len(masked)
                row |= {"tokens": len(document.tokens), "document": digest, "split": NAMES[split]}
            elif split != ENDED:
                row |= {"ended": "split", "reason": "its words, or a person who speaks in it, are held out"}
            audit.add(row)
        audit.publish()
        entries = {NAMES[split]: writer.close() for split, writer in shards.items()}
    return {"shards": entries, "statistics": statistics, "lengths": lengths, "masked_turns": masked_turns}


def without_loss(document: RenderedDocument, turns: list[int]) -> RenderedDocument:
    """The document with no loss in these turns (numbers of its messages)."""
    if not turns:
        return document
    turn = np.searchsorted(document.turn_starts, document.loss_spans[:, 0], side="right") - 1
    return replace(document, loss_spans=document.loss_spans[~np.isin(turn, turns)])


def _rows(table: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(table) as file:
        for batch in file.iter_batches(ROWS_AT_A_TIME, columns=[*AUDIT.names, "masked"]):
            yield from batch.to_pylist()


def _count(
    statistics: dict[str, dict[str, Counter[str]]],
    lengths: dict[str, Counter[str]],
    document: RenderedDocument,
    split: str,
) -> None:
    of_source = statistics.setdefault(document.source, {"train": Counter(), "validation": Counter()})
    tokens = len(document.tokens)
    of_source[split].update(documents=1, tokens=tokens, loss_tokens=document.loss_tokens)
    lengths.setdefault(document.source, Counter())[str(1 << tokens.bit_length() - 1)] += 1


@cache
def _renderer(tokenizer: Path, chat_format: str) -> Renderer:
    """Once a process."""
    return Renderer(tokenizers.load(tokenizer), chat_format)


def token_store(cache: Path, tokenizer: Counts, chat_format: str) -> Path:
    """Where documents are kept by hash: what they were tokenised with names the folder."""
    return cache / "tokens" / f"{tokenizer['fingerprint'][:16]}-{chat_format}-{VERSION}"


def merge_tokens(done: Done, before: Done, sources: list[str]) -> dict[str, Any]:
    """What the parts' counts say of the corpus: shards, statistics, lengths, masked_turns.

    Raises ValueError if nothing is left to train on. `before`: the filter stage, whose folder the message names.
    """
    shards: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    statistics = {name: {split: dict.fromkeys(COUNTED, 0) for split in shards} for name in sources}
    lengths: dict[str, Counter[str]] = {name: Counter() for name in sources}
    for result in done.results:
        for split, entries in result["shards"].items():
            shards[split] += entries
        for source, by_split in result["statistics"].items():
            for split, counts in by_split.items():
                for what, count in counts.items():
                    statistics[source][split][what] += count
        for source, histogram in result["lengths"].items():
            lengths[source].update(histogram)
    if not shards["train"]:
        raise ValueError(
            f"no conversation is left to train on; {before.folder}/*.dropped.parquet and {done.folder}/*.audit.parquet "
            "say where each one ended"
        )
    return {
        "shards": shards,
        "statistics": statistics,
        "lengths": {
            name: dict(sorted(found.items(), key=lambda item: int(item[0]))) for name, found in lengths.items()
        },
        "masked_turns": sum(result["masked_turns"] for result in done.results),
    }
