"""Decontamination: which rows of a corpus hold which benchmark items, by longest shared runs of words.

    python -m osim_core.corpus.decontaminate IN.jsonl --against ITEMS.jsonl --out OUT.parquet

A row is {"text": ...} or {"messages": [{"content": ...}, ...]}; an item is the same with an "id" and, if it likes, a
"benchmark". Roles and chat markup are no part of either, turns are searched end to end, and case, punctuation and
spacing do not count, so a re-cased item or one wrapped in other roles is still found. OUT has a line per row and item
that share a run of 8 words (of the whole item, where it is shorter and fills a turn). The matcher is
csrc/native/decontaminate; 13-word runs are the rule of GPT-3 (arXiv 2005.14165, appendix C), 8 words with coverage
that of PaLM (arXiv 2204.02311, section 8).
"""

from osim_core.corpus.decontaminate.index import (
    COVERAGE,
    LONG_RUN,
    SHORT_RUN,
    Decontaminator,
    Item,
    Matches,
    Span,
)
from osim_core.corpus.decontaminate.run import decontaminate, read_items, read_rows

__all__ = [
    "COVERAGE",
    "LONG_RUN",
    "SHORT_RUN",
    "Decontaminator",
    "Item",
    "Matches",
    "Span",
    "decontaminate",
    "read_items",
    "read_rows",
]
