"""Fourth stage: near-duplicates among the records of all chunks, in one part.

The survivor of a cluster is the record of the source declared first, then the first row, so it depends on no thread and
no order of work. Rows are numbered over all chunks in their order. Clusters stay on disk for the audit
(clusters.parquet) and as plain columns that later parts map: cluster.i64, jaccard.f32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from osim_core.corpus.dedup.run import deduplicate
from osim_core.corpus.dedup.settings import Settings
from osim_core.corpus.durable import map_file, write_durably
from osim_core.corpus.stage import Counts

CLUSTER, JACCARD = "cluster.i64", "jaccard.f32"
BINS = 20  # of the histogram of indices between 0 and 1


@dataclass(frozen=True)
class ClusterJob:
    """Chunks of the filter stage that hold records, in order; sources in the order in which they win."""

    chunks: tuple[Path, ...]
    threshold: float
    sources: tuple[str, ...]
    threads: int


def find_clusters(job: ClusterJob, folder: Path, name: str) -> Counts:
    """Counts: records, kept, identical (of those not kept), sizes {records of a cluster: clusters}, jaccard
    (histogram of what is not kept, BINS from 0 to 1)."""
    out = folder / "clusters.parquet"
    priorities = {source: number for number, source in enumerate(job.sources)}
    settings = Settings(threshold=job.threshold, threads=job.threads, priority_field="source", priorities=priorities)
    figures = deduplicate(job.chunks, out, settings)
    columns = pq.read_table(out, columns=["cluster", "keep", "jaccard"])
    cluster = columns["cluster"].to_numpy()
    jaccard = columns["jaccard"].to_numpy()
    gone = ~columns["keep"].to_numpy()
    write_durably(folder / CLUSTER, np.ascontiguousarray(cluster, np.int64))
    write_durably(folder / JACCARD, np.ascontiguousarray(jaccard, np.float32))
    sizes, clusters = np.unique(np.bincount(cluster), return_counts=True)
    histogram, _ = np.histogram(jaccard[gone], BINS, (0.0, 1.0))
    return {
        "records": figures["documents"],
        "kept": figures["kept"],
        "identical": int((jaccard[gone] == 1.0).sum()),
        "sizes": {str(size): count for size, count in zip(sizes.tolist(), clusters.tolist(), strict=True) if size},
        "jaccard": histogram.tolist(),
    }


@dataclass(frozen=True)
class Clusters:
    """The rows of one chunk. cluster int64 [N]: the row that each keeps; jaccard float32 [N]; rows int64 [N]."""

    rows: np.ndarray
    cluster: np.ndarray
    jaccard: np.ndarray

    @property
    def keep(self) -> np.ndarray:
        """bool [N]"""
        return self.cluster == self.rows


def read_clusters(folder: Path, first: int, count: int) -> Clusters:
    """Rows first..first+count of the columns that `find_clusters` left in `folder`."""
    here = slice(first, first + count)
    cluster = map_file(folder / CLUSTER).view(np.int64)[here]
    return Clusters(np.arange(first, first + count), cluster, map_file(folder / JACCARD).view(np.float32)[here])


def source_order(declared: Sequence[str], sources: Sequence[str]) -> tuple[str, ...]:
    """`sources`, the declared ones first. Raises ValueError for a declared one that is not there."""
    for name in declared:
        if name not in sources:
            raise ValueError(f"dedup.priorities: no source {name!r}; there are {', '.join(sources)}")
    return (*declared, *(name for name in sources if name not in declared))
