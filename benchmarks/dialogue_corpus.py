"""A dialogue corpus with planted near-duplicates, and the exact truth about it; used by benchmarks/dedup.py.

62 sources, some with a system prompt that all their rows share and stock phrases that recur; words by Zipf's law from
a vocabulary of 40,000; a fifth of the rows are edited copies of others (`EDITS`), 2 % have one to four words, 2 % are
Chinese without spaces, and 1,000 rows fill the slots of one template. Words are random within the law: there is no
syntax. The bytes depend on the arguments alone, since every draw is a splitmix64 of a counter.

`true_pairs` knows nothing of MinHash: it is the prefix-filter join of Chaudhuri et al. 2006 and Bayardo et al. 2007
over sets of word 5-grams that are numbered, not hashed. Legend: N texts, T tokens of all of them, P pairs.
"""

import hashlib
import re
from itertools import pairwise
from pathlib import Path

import numpy as np

SOURCES = 62
VOCABULARY = 40_000
HOT_CLUSTER = 1_000
EDITS = ("exact", "case_and_punctuation", "substitution", "insert_delete", "truncated", "appended", "slots")
CONSONANTS = "b br ch d f g k l m n p pl r s st t v w".split()  # noqa: SIM905 - easier to read
SYLLABLES = [consonant + vowel for consonant in CONSONANTS for vowel in ("a", "e", "i", "o", "ou", "er")]
TOKEN = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")


class Draws:
    """splitmix64 of a counter: `below(n)` and vectors of it."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def bits(self, count: int) -> np.ndarray:
        """uint64 [count]"""
        with np.errstate(over="ignore"):
            x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(self.state)
            self.state = int(x[-1]) if count else self.state
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            return x ^ (x >> np.uint64(31))

    def below(self, limit: int, count: int) -> np.ndarray:
        """int64 [count], each in [0, limit)"""
        return ((self.bits(count) >> np.uint64(32)) * np.uint64(limit) >> np.uint64(32)).astype(np.int64)


def make_corpus(documents: int = 200_000, seed: int = 1) -> list[str]:
    """The texts, in a shuffled order that keeps no copy near its original."""
    draws = Draws(seed)
    words = _vocabulary(draws)
    zipf = _Zipf(draws, words)
    prompts = [zipf.sentence(15 + s) if s % 3 == 0 else "" for s in range(SOURCES)]
    stock = [zipf.sentence(6 + s % 5) for s in range(200)]
    short = documents // 50
    hot = min(HOT_CLUSTER, documents // 20)
    copies = documents // 5
    plain = documents - 2 * short - hot - copies

    turns = [_dialogue(draws, zipf, stock) for _ in range(plain)]
    source = draws.below(SOURCES, plain)
    texts = [_render(prompts[s], t) for s, t in zip(source, turns, strict=True)]
    for i, original in enumerate(draws.below(plain, copies)):
        edited = _edit(EDITS[i % len(EDITS)], turns[original], draws, zipf)
        texts.append(_render(prompts[source[original]], edited))
    texts += [" ".join(zipf.words(1 + i % 4)).capitalize() + ("", "!", "?", " :)")[i % 4] for i in range(short)]
    lengths = 10 + draws.below(90, short)
    texts += ["".join(map(chr, 0x4E00 + draws.below(3_000, n))) + "。" for n in lengths]
    template = zipf.words(120)
    for _ in range(hot):
        filled = list(template)
        for slot in (30, 90):
            filled[slot] = zipf.words(1)[0]
        texts.append(" ".join(filled))
    order = np.argsort(draws.bits(len(texts)), kind="stable")
    return [texts[i] for i in order]


def corpus_digest(texts: list[str]) -> str:
    """SHA-256 of the texts, each with a line feed behind it."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def _vocabulary(draws: Draws) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < VOCABULARY:
        lengths = 1 + draws.below(3, 4_096)
        picks = draws.below(len(SYLLABLES), 3 * 4_096).reshape(-1, 3)
        for row, length in zip(picks.tolist(), lengths.tolist(), strict=True):
            found.setdefault("".join(SYLLABLES[i] for i in row[:length]))
    return list(found)[:VOCABULARY]


class _Zipf:
    """Words drawn with probability proportional to 1 / rank, a million at a time."""

    def __init__(self, draws: Draws, vocabulary: list[str]) -> None:
        self.draws, self.vocabulary = draws, np.array(vocabulary, dtype=object)
        weights = 1.0 / np.arange(1, len(vocabulary) + 1)
        self.borders = (np.cumsum(weights) / weights.sum() * 2.0**32).astype(np.uint64)
        self.pool: list[str] = []
        self.used = 0

    def words(self, count: int) -> list[str]:
        if len(self.pool) - self.used < count:
            bits = self.draws.bits(1_000_000) >> np.uint64(32)
            ranks = np.minimum(np.searchsorted(self.borders, bits, side="right"), len(self.vocabulary) - 1)
            self.pool, self.used = self.vocabulary[ranks].tolist(), 0
        self.used += count
        return self.pool[self.used - count : self.used]

    def sentence(self, count: int) -> str:
        return " ".join(self.words(count)).capitalize() + "."


def _dialogue(draws: Draws, zipf: "_Zipf", stock: list[str]) -> list[list[str]]:
    """Two to nine turns of words; a turn in eight is a stock phrase."""
    count, *rolls = draws.below(1 << 20, 10).tolist()
    turns = []
    for roll in rolls[: 2 + count % 8]:
        if roll % 8 == 0:
            turns.append(stock[roll // 8 % len(stock)].split())
        else:
            turns.append(zipf.words(4 + (roll // 8 % 27) * (1 + roll // 512 % 2) // 2))
    return turns


def _render(prompt: str, turns: list[list[str]]) -> str:
    lines = [prompt] if prompt else []
    for i, turn in enumerate(turns):
        comma = f"{turn[0].capitalize()}, {' '.join(turn[1:])}" if len(turn) > 9 else " ".join(turn).capitalize()
        lines.append(f"{'User' if i % 2 == 0 else 'Assistant'}: {comma}{'?' if len(turn) % 3 == 0 else '.'}")
    return "\n".join(lines)


def _edit(kind: str, turns: list[list[str]], draws: Draws, zipf: "_Zipf") -> list[list[str]]:
    turns = [list(turn) for turn in turns]
    total = sum(map(len, turns))
    changes = 1 + total // 80
    picks = draws.below(1 << 20, 2 * changes + 2).tolist()
    if kind == "case_and_punctuation":
        turns = [[w.upper() if j % 3 == 0 else w + ("", "!", "...")[j % 3] for j, w in enumerate(t)] for t in turns]
    elif kind in ("substitution", "slots"):
        for i in range(changes):
            turn = turns[picks[2 * i] % len(turns)]
            turn[picks[2 * i + 1] % len(turn)] = zipf.words(1)[0] if kind == "substitution" else f"user{picks[i]}"
    elif kind == "insert_delete":
        for i in range(changes):
            turn = turns[picks[2 * i] % len(turns)]
            at = picks[2 * i + 1] % len(turn)
            if i % 2 == 0 or len(turn) < 3:
                turn.insert(at, zipf.words(1)[0])
            else:
                del turn[at]
    elif kind == "truncated":
        turns[-1] = turns[-1][: max(1, len(turns[-1]) - total // (8 + picks[0] % 10))]
    elif kind == "appended":
        turns[-1] += zipf.words(max(1, total // (8 + picks[0] % 10)))
    return turns


def true_pairs(texts: list[str], threshold: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """(pairs int64 [P, 2], jaccard float64 [P]) of all texts at or above the threshold, exactly.

    Texts of fewer than five tokens pair (at 1) if their tokens are equal, or their bytes where they have no token.
    """
    sets_S, offsets_N1, short = _shingle_sets(texts)
    sizes_N = np.diff(offsets_N1)
    document_S = np.repeat(np.arange(len(texts)), sizes_N)
    frequency = np.bincount(sets_S)
    order = np.lexsort((sets_S, frequency[sets_S], document_S))  # each set from its rarest shingle
    sets_S = sets_S[order]
    place_S = np.arange(sets_S.size) - np.repeat(offsets_N1[:-1], sizes_N)
    prefix_N = sizes_N - np.ceil(threshold * sizes_N - 1e-9).astype(np.int64) + 1
    in_prefix = place_S < prefix_N[document_S]
    candidates = _pairs_of_groups(sets_S[in_prefix], document_S[in_prefix])
    small, large = sizes_N[candidates].min(1), sizes_N[candidates].max(1)
    candidates = candidates[small >= threshold * large - 1e-9]
    sorted_sets = sets_S[np.lexsort((sets_S, document_S))]
    jaccard = _exact_jaccard(candidates, sorted_sets, offsets_N1)
    keep = jaccard >= threshold
    groups, members = short
    equal = _pairs_of_groups(groups, members)
    return np.concatenate([candidates[keep], equal]), np.concatenate([jaccard[keep], np.ones(len(equal))])


def _shingle_sets(texts: list[str]) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Numbers of the distinct 5-grams of every text, offsets [N + 1], and (group, text) of the short texts."""
    number: dict[str, int] = {}
    short_number: dict[object, int] = {}
    ids_T, lengths, short_groups, short_texts = [], [], [], []
    for i, text in enumerate(texts):
        tokens = TOKEN.findall(text.lower())
        if len(tokens) < 5:
            short_groups.append(short_number.setdefault(tuple(tokens) if tokens else text, len(short_number)))
            short_texts.append(i)
            tokens = []
        ids_T.append(np.fromiter((number.setdefault(t, len(number)) for t in tokens), np.int64, len(tokens)))
        lengths.append(len(tokens))
    tokens_T = np.concatenate(ids_T)
    text_T = np.repeat(np.arange(len(texts)), lengths)
    grams = tokens_T
    for width in range(2, 6):  # number the 2-grams, then the 3-grams from those, ...
        grams = grams[:-1] * len(number) + tokens_T[width - 1 :]
        grams = np.unique(grams, return_inverse=True)[1] if width < 5 else grams
    within = text_T[:-4] == text_T[4:]
    grams = np.unique(grams[within], return_inverse=True)[1]
    pairs = np.unique(text_T[:-4][within] * (grams.max(initial=0) + 1) + grams)
    documents, sets_S = np.divmod(pairs, grams.max(initial=0) + 1)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(documents, minlength=len(texts)))])
    return sets_S, offsets, (np.array(short_groups, np.int64), np.array(short_texts, np.int64))


def _pairs_of_groups(group: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Distinct pairs (a < b) of members that share a group, int64 [P, 2]."""
    order = np.lexsort((member, group))
    group, member = group[order], member[order]
    found = np.zeros(0, np.int64)
    limit = int(member.max(initial=0)) + 1
    step = 1
    while step < group.size:  # every pair of a group is `step` apart for one step
        same = group[step:] == group[:-step]
        if not same.any():
            break
        found = np.unique(np.concatenate([found, member[:-step][same] * limit + member[step:][same]]))
        live = np.zeros(group.size, bool)  # groups too small for the next step take no further part
        live[step:] |= same
        live[:-step] |= same
        kept = live
        group, member = group[kept], member[kept]
        step += 1
    return np.stack(np.divmod(found, limit), axis=1)


def _exact_jaccard(pairs: np.ndarray, sets_S: np.ndarray, offsets_N1: np.ndarray) -> np.ndarray:
    """Jaccard index of each pair of sets (sorted, distinct numbers)."""
    result = np.empty(len(pairs))
    sets = [sets_S[a:b] for a, b in pairwise(offsets_N1)]
    for i, (a, b) in enumerate(pairs.tolist()):
        common = np.intersect1d(sets[a], sets[b], assume_unique=True).size
        result[i] = common / (sets[a].size + sets[b].size - common)
    return result


def cached(folder: Path, documents: int, seed: int = 1) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(texts, true pairs, their Jaccard indices), computed once and kept in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = make_corpus(documents, seed)
    path = folder / f"truth-{corpus_digest(texts)[:16]}.npz"
    if not path.exists():
        pairs, jaccard = true_pairs(texts)
        temporary = path.with_suffix(".partial.npz")
        np.savez(temporary, pairs=pairs, jaccard=jaccard)
        temporary.rename(path)
    with np.load(path) as stored:
        return texts, stored["pairs"], stored["jaccard"]
