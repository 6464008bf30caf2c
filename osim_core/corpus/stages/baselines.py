"""N-gram baselines of the shards, in one part: what a midtraining run's held-out loss is compared with (ngram.py).

They count the first tokens of each source, so that their cost does not grow with the corpus.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from osim_core.corpus.conversation import RenderedDocument
from osim_core.corpus.ngram import Events, baselines
from osim_core.corpus.shards import ShardSet
from osim_core.corpus.stage import Counts

LOSS_TOKENS = 4_000_000  # counted in each split, over all sources


@dataclass(frozen=True)
class BaselineJob:
    """The folder of the shards, their entries {split: entries}, and the names of the sources."""

    folder: Path
    shards: dict[str, list[dict[str, Any]]]
    sources: tuple[str, ...]
    vocab_size: int


def measure_baselines(job: BaselineJob, folder: Path, name: str) -> Counts:
    """Counts: baselines {name: {source: nats per token, "all": ...}}; {} where a split is empty."""
    if not all(job.shards.values()):
        return {"baselines": {}}
    train = Events(job.vocab_size)
    for _, document in _beginnings(job, "train"):
        train.add(document)
    validation = {source: Events(job.vocab_size) for source in job.sources}
    for source, document in _beginnings(job, "validation"):
        validation[source].add(document)
    return {"baselines": baselines(train, validation.items())}


def _beginnings(job: BaselineJob, split: str) -> Iterator[tuple[str, RenderedDocument]]:
    """Documents of each source until its share of LOSS_TOKENS is reached."""
    shards = ShardSet.open(job.folder, split, manifest={"sources": list(job.sources), "shards": job.shards})
    for index, source in enumerate(job.sources):
        left = LOSS_TOKENS // len(job.sources)
        for number in np.flatnonzero(shards.sources == index).tolist():
            document = shards.document(number)
            yield source, document
            left -= document.loss_tokens
            if left <= 0:
                break
