"""Which texts share a band's key, by sorting keys on a torch device; on a GPU torch.sort is CUB's radix sort.

The C++ clustering finds the same groups with a hash table (csrc/native/dedup/buckets.hpp) where no GPU is there to
sort. Legend: N texts, R of them with 16-bit lanes, B bands, M texts of a band that share their key.
"""

import numpy as np
import torch

from osim_core.corpus.dedup import Sketches


def band_runs(sketches: Sketches, device: torch.device | str) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each band (rows uint32 [M], borders int64): rows[borders[i] : borders[i + 1]] share a key, and ascend.

    Texts without 16-bit lanes take no part; their keys are zeros.
    """
    has_narrow = (sketches.widths == 1) | (sketches.widths == 2)
    rows_R = torch.from_numpy(np.flatnonzero(has_narrow)).to(device)
    runs = []
    for keys_N in sketches.keys:
        # As int32: any order will do. Copied, since a column may be read-only.
        keys_R = torch.from_numpy(keys_N.view(np.int32).copy()).to(device)[rows_R]
        places_M, borders = equal_keys(keys_R)
        runs.append((rows_R[places_M].cpu().numpy().astype(np.uint32), borders.cpu().numpy()))
    return runs


def equal_keys(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(places int64 [M], borders int64) of the keys that stand at more than one place, ascending for each key."""
    ordered, places = torch.sort(keys, stable=True)
    repeats = torch.zeros(keys.numel() + 1, dtype=torch.bool, device=keys.device)  # [i]: as the key before it
    repeats[1:-1] = ordered[1:] == ordered[:-1]
    shared = repeats[:-1] | repeats[1:]
    begins = torch.nonzero(~repeats[:-1][shared]).flatten()
    end = torch.full((1,), int(shared.sum()), dtype=torch.int64, device=keys.device)
    return places[shared], torch.cat([begins, end])
