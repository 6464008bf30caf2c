"""What a corpus is built from: packaged sources, files of registered sources, and your own rows.

An input is what one part of the first stage reads: a packaged source, one file, or one ConvoKit folder.
"""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from osim_core.config import CorpusConfig
from osim_core.corpus.registry import REGISTRY, UNKNOWN, find
from osim_core.corpus.sources import SOURCES
from osim_core.corpus.sources.records import find_records


@dataclass(frozen=True)
class Input:
    """name: of its part and its chunks. source: as registered; "" for rows that each name their own."""

    name: str
    kind: Literal["packaged", "registered", "rows"]
    source: str
    path: Path | None = None

    @property
    def label(self) -> str:
        """What bad rows are counted under: their source, or your own file."""
        return self.source or str(self.path)

    def identity(self) -> Any:
        """What its content is keyed by, JSON-ready."""
        if self.path is None:
            return SOURCES[self.source].identity()
        files = [self.path] if self.path.is_file() else sorted(p for p in self.path.rglob("*") if p.is_file())
        stats = [(file, file.stat()) for file in files]
        return [[str(file.resolve()), stat.st_size, stat.st_mtime_ns] for file, stat in stats]

    def bytes(self) -> int:
        """Of its files; 0 for a packaged source, which has no bad rows."""
        return sum(size for _, size, _ in self.identity()) if self.path else 0


def find_inputs(config: CorpusConfig) -> list[Input]:
    """Everything that the config names, in order: packaged sources, registered ones, your own rows.

    Raises ValueError, in one line, for an unknown or refused source, a path without data, or nothing to read.
    """
    unknown = [name for name in config.packaged if name not in SOURCES]
    if unknown:
        raise ValueError(f"packaged: no source {unknown[0]!r}; there are {', '.join(SOURCES)}")
    inputs = [Input(name, "packaged", name) for name in config.packaged]
    for name, place in config.sources.items():
        source, path = find(name), Path(place)
        if source.format == "convokit":
            if not path.is_dir():
                raise ValueError(f"sources {name}: {path} is no folder; a ConvoKit corpus is one")
            inputs.append(_input("registered", name, path))
        else:
            inputs += [_input("registered", name, file) for file in find_records([path])]
    inputs += [_input("rows", "", file) for file in (find_records(config.rows) if config.rows else [])]
    if not inputs:
        raise ValueError("nothing to read: name packaged sources, sources with their paths, or rows")
    twice = [name for name, count in Counter(item.name for item in inputs).items() if count > 1]
    if twice:
        path = next(item.path or item.source for item in inputs if item.name == twice[0])
        raise ValueError(f"{path}: named twice; every row of it would be a duplicate")
    return inputs


def _input(kind: Literal["registered", "rows"], source: str, path: Path) -> Input:
    # by path, so that a chunk keeps its name, and its tokens their place, when other inputs come or go
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    stem = re.sub(r"[^\w-]", "_", path.name.split(".")[0])
    return Input(f"{source or 'rows'}-{stem}-{digest}", kind, source, path)


def facts(source: str) -> dict[str, str]:
    """What is known of a source: axis, title, licence, terms, homepage, machine (who wrote the trained side)."""
    if source in SOURCES:
        known = SOURCES[source]
        return {
            "axis": known.axis,
            "title": known.title,
            "licence": known.licence,
            "terms": "as the licence says",
            "homepage": known.homepage,
            "machine": "people",
        }
    if source in REGISTRY:
        found = REGISTRY[source]
        return {name: getattr(found, name) for name in ("axis", "title", "licence", "terms", "homepage", "machine")}
    return dict.fromkeys(("axis", "licence", "terms", "homepage", "machine"), UNKNOWN) | {"title": "your own rows"}
