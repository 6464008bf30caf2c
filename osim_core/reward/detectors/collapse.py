"""Cross-sample collapse: the replies to one prompt are near-copies of each other.

The score of a reply is its mean Jaccard index of word bigrams with the others of its group, beyond ALLOWED, scaled from
0 to 1 by its words between FEW_WORDS and ENOUGH_WORDS: everybody says "yes" alike. ALLOWED is declared, not measured:
no corpus here has several people's replies to one turn, and one person's lines in a row, which calibrate.py takes, have
less in common than answers to one question. Legend: N replies of a group, G hash buckets.
"""

import numpy as np

from osim_core.reward.detectors import Batch
from osim_core.reward.detectors.text import ngram_sets

MIN_GROUP = 3
FEW_WORDS, ENOUGH_WORDS = 3, 10
ALLOWED = 0.25


class Collapse:
    """The detector, over `group`."""

    name = "collapse"

    def score(self, batch: Batch) -> np.ndarray:
        scores_N = np.zeros(len(batch))
        for group in batch.groups:
            if len(group) >= MIN_GROUP:
                sets_NG = ngram_sets([batch.words[row] for row in group], 2)
                shared_NN = (sets_NG @ sets_NG.T).toarray()
                sizes_N = shared_NN.diagonal()
                union_NN = sizes_N[:, None] + sizes_N[None, :] - shared_NN
                jaccard_NN = shared_NN / np.maximum(union_NN, 1.0)
                np.fill_diagonal(jaccard_NN, 0.0)
                mean_N = jaccard_NN.sum(axis=1) / (len(group) - 1)
                weight_N = np.clip((batch.lengths_N[group] - FEW_WORDS) / (ENOUGH_WORDS - FEW_WORDS), 0.0, 1.0)
                beyond_N = np.maximum(0.0, mean_N - ALLOWED) / (1.0 - ALLOWED)
                scores_N[group] = beyond_N * weight_N
        return scores_N
