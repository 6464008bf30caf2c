"""Synthetic rendered documents and shards of them, for the corpus and recipe tests."""

import json
from pathlib import Path

import numpy as np

from osim_core.corpus.conversation import RenderedDocument
from osim_core.corpus.shards import ShardSet, ShardWriter

SOURCES = ["chat", "plays", "debates"]


def make_documents(
    count: int, *, seed: int = 0, longest: int = 60, vocab_size: int = 1000, sources: list[str] | None = None
) -> list[RenderedDocument]:
    """Documents of 1..longest random tokens in turns of random length, every other turn (roughly) with loss."""
    rng = np.random.default_rng(seed)
    documents = []
    for number in range(count):
        length = int(rng.integers(1, longest + 1))
        borders = np.unique(np.concatenate([[0], rng.integers(0, length, rng.integers(0, 8))]))
        turns = list(zip(borders, [*borders[1:], length], strict=True))
        # a header token and sometimes a closing one carry no loss, as in a chat template
        spans = [(a + rng.integers(0, 2), b) for a, b in turns if rng.random() < 0.6]
        documents.append(
            RenderedDocument(
                id=f"doc/{number}",
                source=str(rng.choice(sources or SOURCES)),
                tokens=rng.integers(0, vocab_size, length).astype(np.int32),
                loss_spans=np.array([(a, b) for a, b in spans if a < b], np.int32).reshape(-1, 2),
                turn_starts=borders.astype(np.int32),
            )
        )
    return documents


def write_shards(
    folder: Path,
    documents: list[RenderedDocument],
    *,
    split: str = "train",
    vocab_size: int = 1000,
    max_documents: int = 16,
) -> Path:
    """Shards and manifest.json of one split in `folder`, as `prepare` leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    with ShardWriter(folder, split, vocab_size, SOURCES, max_documents) as writer:
        for document in documents:
            writer.add(document)
        entries = writer.close()
    (folder / "manifest.json").write_text(json.dumps({"sources": SOURCES, "shards": {split: entries}}))
    return folder


def open_shards(folder: Path, documents: list[RenderedDocument], **options) -> ShardSet:
    """`write_shards`, then open them."""
    return ShardSet.open(write_shards(folder, documents, **options), options.get("split", "train"))


def loss_mask(document: RenderedDocument) -> np.ndarray:
    """bool [n], the obvious way."""
    mask = np.zeros(len(document.tokens), bool)
    for start, stop in document.loss_spans:
        mask[start:stop] = True
    return mask
