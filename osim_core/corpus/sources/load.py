"""A registered source's files as dialogues: `load(name, paths, quarantine)`.

    with memory bounded by one row, and every row either a dialogue, a count in quarantine.counts (damaged) or a count
    in quarantine.notes (left out by a stated rule)

FORMATS maps the registry's `format` to a reader of (source, paths, quarantine) -> (where, dialogue).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from osim_core.corpus.registry import Source, find
from osim_core.corpus.sources.dialogue import Dialogue
from osim_core.corpus.sources.formats import chats, convokit, experiments, stories, talks
from osim_core.corpus.sources.quarantine import Quarantine, Where
from osim_core.corpus.sources.records import find_records, read_records

Located = Iterator[tuple[Where, Dialogue]]
Reader = Callable[[Source, Sequence[Path], Quarantine], Located]


def load(name: str, paths: Sequence[str | Path], quarantine: Quarantine) -> Iterator[Dialogue]:
    """Dialogues of a registered source, in file order; empty turns are left out.

    `paths` are its files, or folders with them (a ConvoKit corpus is one folder). Raises ValueError for an unknown or
    refused source, or where there is no file of a known kind; bad rows and files go to `quarantine`.
    """
    source = find(name)
    return _load(source, [Path(path) for path in paths], quarantine)


def _load(source: Source, paths: list[Path], quarantine: Quarantine) -> Iterator[Dialogue]:
    names: dict[Path, str] = {}
    for where, dialogue in FORMATS[source.format](source, paths, quarantine):
        turns = tuple(turn for turn in dialogue.turns if turn.text.strip())
        quarantine.notes["empty_turns"] += len(dialogue.turns) - len(turns)
        quarantine.notes["dialogues"] += 1
        # ids of the records themselves repeat across files, and some layouts have none
        file = names.setdefault(where.file, f"{where.file.parent.name}/{where.file.name}")
        name = f"{file}:{where.row if where.row is not None else 0}"
        yield replace(
            dialogue,
            turns=turns,
            id=f"{name}/{dialogue.id}" if dialogue.id else name,
            scene=dialogue.scene or source.setting,
        )


def _each(parse: Callable[[Source, dict[str, Any]], Dialogue]) -> Reader:
    """A reader for layouts in which a row stands alone."""

    def read(source: Source, paths: Sequence[Path], quarantine: Quarantine) -> Located:
        for where, row in read_records(find_records(paths), source.columns, quarantine):
            with quarantine.catch(where):
                yield where, parse(source, row)

    return read


def _convokit(source: Source, paths: Sequence[Path], quarantine: Quarantine) -> Located:
    for folder in paths:
        yield from convokit.read(source.name, folder, quarantine)


def _coser(source: Source, paths: Sequence[Path], quarantine: Quarantine) -> Located:
    for where, book in read_records(find_records(paths), source.columns, quarantine):
        with quarantine.catch(where):
            for dialogue in stories.coser(source.name, where, book, quarantine):
                yield where, dialogue


def _oasst(source: Source, paths: Sequence[Path], quarantine: Quarantine) -> Located:
    yield from chats.oasst(source.name, read_records(find_records(paths), source.columns, quarantine), quarantine)


def _empathetic(source: Source, paths: Sequence[Path], quarantine: Quarantine) -> Located:
    rows = read_records(find_records(paths), source.columns, quarantine, quoted=False)  # commas are stored as _comma_
    yield from talks.empathetic(source.name, rows, quarantine)


def _rows(source: Source, paths: Sequence[Path], quarantine: Quarantine) -> Located:
    """OdysSim's own rows, which mix all sources in one file: those of this source."""
    trained = chats.PERSON if source.roles == "swap" else chats.AI
    for where, row in read_records(find_records(paths), source.columns, quarantine):
        if row["data_source"] != source.name:
            quarantine.notes["other_sources"] += 1
            continue
        with quarantine.catch(where):
            yield where, chats.chat(source.name, row, source.field, trained)


FORMATS: dict[str, Reader] = {
    "chat": _each(lambda source, row: chats.chat(source.name, row, source.field)),
    "rows": _rows,
    "prism": _each(lambda source, row: chats.prism(source.name, row)),
    "preference": _each(lambda source, row: chats.preference(source.name, row, source.field)),
    "oasst": _oasst,
    "convokit": _convokit,
    "dailydialog": _each(lambda source, row: talks.dailydialog(source.name, row)),
    "empathetic": _empathetic,
    "mathdial": _each(lambda source, row: talks.mathdial(source.name, row)),
    "tutoring": _each(lambda source, row: talks.tutoring(source.name, row)),
    "humanual": _each(lambda source, row: experiments.humanual(source.name, row)),
    "psych101": _each(lambda source, row: experiments.psych101(source.name, row)),
    "socsci210": _each(lambda source, row: experiments.socsci210(source.name, row)),
    "coser": _coser,
    "sotopia": _each(lambda source, row: stories.sotopia(source.name, row)),
}
