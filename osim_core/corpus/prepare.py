"""Sources in, shards out: `prepare(config.data)` returns the folder that the loader opens.

    sources -> split by group -> tokenizer (loaded or trained on the train split) -> render -> shards + manifest.json

The folder is named by a hash of everything that decides its content, so the second call returns at once and another
config gets another folder. It is built under a temporary name and renamed when complete; processes that start
together wait for the one that builds.

    python -m osim_core.corpus.prepare                    # default sources, prints what they hold
    python -m osim_core.corpus.prepare chats.jsonl        # your own rows instead

This is the quick way from dialogue to shards; recipes/corpus.py is the full one, and `data.corpus` names what it built.

manifest.json holds: sources (names, in the order shards refer to them); shards {split: entries}; statistics {source:
{split: {documents, tokens, loss_tokens}}}; notes {source: {what was left out: how many}}; licences; tokenizer
(vocab_size, end_of_turn, fingerprint; its files are in tokenizer/); baselines (ngram.py); seed; identity (what the
hash covers).
"""

import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import batched
from pathlib import Path
from typing import Any

from osim_core.config import DataConfig
from osim_core.corpus import tokenizer as tokenizers
from osim_core.corpus.conversation import Conversation
from osim_core.corpus.durable import exclusive, sync_folder, write_durably
from osim_core.corpus.ngram import Events, baselines
from osim_core.corpus.render import Renderer
from osim_core.corpus.roles import RoleTable
from osim_core.corpus.shards import ShardWriter
from osim_core.corpus.sources import SOURCES, files
from osim_core.corpus.split import Split, choose_held_out, rank, split_of
from osim_core.corpus.tokenizer import CHATML_TEMPLATE, Tokenizer

VERSION = 2  # raise it when the same inputs give other shards
SEED = 1234  # of the split; the training seed must not move people between train and validation
CHUNK = 256  # conversations rendered at a time
SMALL_SOURCE = 2_000  # rows; a user's source up to this size is held in memory, so that its split is exact
TOKENIZER_CHARACTERS = 2_000_000  # per source, from its beginning; 4,096 tokens need no more
BASELINE_TOKENS = 4_000_000  # loss tokens per source that the n-gram baselines count

Report = Callable[[str, int, int], None]  # stage, done, total
Stream = Iterator[tuple[Split, Conversation]]


def prepare(data: DataConfig, report: Report | None = None) -> Path:
    """Build (or find) the shards of a data config.

    `report` is called as (stage, done, total) while it works. Raises ValueError, with nothing left behind that could
    be taken for good, for whatever is wrong with a source, file, row, tokenizer or chat template.
    """
    if data.corpus:
        return open_corpus(data)
    corpus = _Corpus(data)
    identity = corpus.identity()
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    cache = Path(data.cache)
    folder = cache / key
    if (folder / "manifest.json").is_file():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with exclusive(cache / f"{key}.lock"):
        if (folder / "manifest.json").is_file():  # another process built it while this one waited
            return folder
        partial = cache / f"{key}.partial"
        for leftover in (partial, folder):  # of a killed run, or without its manifest: not to be trusted
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir()
        try:
            manifest = corpus.build(partial, report or (lambda stage, done, total: None))
        except ValueError:
            shutil.rmtree(partial)
            raise
        write_durably(partial / "manifest.json", json.dumps({**manifest, "identity": identity}, indent=1).encode())
        partial.rename(folder)
        sync_folder(cache)
    return folder


def open_corpus(data: DataConfig) -> Path:
    """The folder that recipes/corpus.py built. Raises ValueError if it is none, or not what the config asks for."""
    folder = Path(data.corpus)
    if data.paths:
        raise ValueError("data.corpus and data.paths: a built corpus has its own sources; give your rows to its recipe")
    if not (folder / "manifest.json").is_file():
        raise ValueError(f"data.corpus: {folder} has no manifest.json; build it with recipes/corpus.py")
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in data.sources:
        if name not in manifest["sources"]:
            raise ValueError(f"data.sources: no source {name!r}; {folder} has {', '.join(manifest['sources'])}")
    if manifest["masked_turns"] and data.loss_on == "everyone":
        raise ValueError(
            f"data.loss_on everyone: {folder} masks {manifest['masked_turns']} turns that hold benchmark items, which "
            "only the simulated side's loss respects; use data.loss_on simulated, or decontaminate with policy drop"
        )
    return folder


@dataclass
class _Counts:
    """Totals of one source and split."""

    documents: int = 0
    tokens: int = 0
    loss_tokens: int = 0


class _Corpus:
    """One data config's sources, opened but not yet read."""

    def __init__(self, data: DataConfig) -> None:
        if not 0 <= data.validation_share < 1:
            raise ValueError(f"data.validation_share: {data.validation_share} is not in [0, 1)")
        self.data = data
        self.files = files.find_files(data.paths)
        self.roles = RoleTable(data.roles)
        everything = not data.sources and not data.paths
        self.packaged = [SOURCES[name] for name in SOURCES if everything or name in data.sources]
        unknown = [name for name in data.sources if name not in SOURCES]
        if unknown and not self.files:
            raise ValueError(
                f"data.sources: no source {unknown[0]!r}; packaged sources are {', '.join(SOURCES)} "
                "(set data.paths for your own files)"
            )
        self.tokenizer = None if data.tokenizer == "trained" else tokenizers.load(data.tokenizer)
        self.notes: dict[str, Counter[str]] = {}

    def identity(self) -> dict[str, Any]:
        """Everything that decides the content of the shards, JSON-ready."""
        stats = [(path, path.stat()) for path in self.files]
        return {
            "version": VERSION,
            "seed": SEED,
            "packaged": {source.name: source.identity() for source in self.packaged},
            "files": [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats],
            "roles": self.data.roles,
            "validation_share": self.data.validation_share,
            "tokenizer": self.tokenizer.fingerprint if self.tokenizer else f"trained {self.data.tokenizer_vocab_size}",
            "chat_format": self.data.chat_format,
            "shard_documents": self.data.shard_documents,
        }

    def build(self, folder: Path, report: Report) -> dict[str, Any]:
        """Write tokenizer and shards into an empty folder; returns the manifest without its identity."""
        own_rows = files.count_sources(self.files)
        names = [source.name for source in self.packaged] + sorted(own_rows)
        self._check_names(names, own_rows)
        packaged = self._load_packaged(report)
        tokenizer = self._tokenizer(folder / "tokenizer", packaged, own_rows, report)
        renderer = Renderer(tokenizer, self.data.chat_format)

        counts = {name: {"train": _Counts(), "validation": _Counts()} for name in names}
        train = Events(tokenizer.vocab_size)
        validation = {name: Events(tokenizer.vocab_size) for name in names}
        total, done = len(packaged) + own_rows.total(), 0
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(
                    ShardWriter(folder, split, tokenizer.vocab_size, names, self.data.shard_documents)
                )
                for split in ("train", "validation")
            }
            for chunk in batched(self._stream(packaged, own_rows), CHUNK):
                documents = renderer.render([conversation for _, conversation in chunk])
                for (split, _), document in zip(chunk, documents, strict=True):
                    writers[split].add(document)
                    count = counts[document.source][split]
                    count.documents += 1
                    count.tokens += len(document.tokens)
                    count.loss_tokens += document.loss_tokens
                    if split == "validation":
                        validation[document.source].add(document)
                    elif count.loss_tokens <= BASELINE_TOKENS:
                        train.add(document)
                done += len(chunk)
                report("render", done, total)
            shards = {split: writer.close() for split, writer in writers.items()}
        if not shards["train"]:
            raise ValueError("data: no conversation is left to train on; check data.sources and data.paths")
        report("baselines", 0, 1)
        scores = baselines(train, validation.items())
        report("baselines", 1, 1)
        return {
            "sources": names,
            "shards": shards,
            "statistics": {
                name: {split: vars(count) for split, count in by_split.items()} for name, by_split in counts.items()
            },
            "notes": {name: dict(notes) for name, notes in self.notes.items()},
            "licences": {source.name: f"{source.licence}; {source.homepage}" for source in self.packaged},
            "tokenizer": {
                "vocab_size": tokenizer.vocab_size,
                "end_of_turn": renderer.end_of_turn,
                "fingerprint": tokenizer.fingerprint,
            },
            "baselines": scores,
            "seed": SEED,
        }

    def _check_names(self, names: list[str], own_rows: Counter[str]) -> None:
        for source in self.packaged:
            if source.name in own_rows:
                raise ValueError(
                    f"data_source {source.name!r} of your files is the name of a packaged source; rename it"
                )
        for name in self.data.sources:
            if name not in names:
                raise ValueError(f"data.sources: no source {name!r}; there are {', '.join(names)}")

    def _load_packaged(self, report: Report) -> list[tuple[Split, Conversation]]:
        """All packaged conversations with their split; those that quote a held-out person are dropped."""
        kept = []
        for number, source in enumerate(self.packaged):
            report("read", number, len(self.packaged))
            self.notes[source.name] = notes = Counter()
            kept += self._split(list(source.load(notes)), notes)
        report("read", len(self.packaged), len(self.packaged))
        return kept

    def _split(self, conversations: list[Conversation], notes: Counter[str]) -> Stream:
        held_out = choose_held_out(conversations, self.data.validation_share, SEED)
        notes["groups"] = len({c.group for c in conversations})
        notes["held_out_groups"] = len(held_out)
        for conversation in conversations:
            if split := split_of(conversation, held_out):
                yield split, conversation
            else:
                notes["dropped_for_validation"] += 1

    def _own_stream(self, own_rows: Counter[str]) -> Stream:
        """The user's rows: large sources in file order, split by a hash of the group; then the small ones."""
        small: dict[str, list[Conversation]] = {}
        for conversation in files.read(self.files, self.roles):
            source = conversation.source
            if own_rows[source] <= SMALL_SOURCE:
                small.setdefault(source, []).append(conversation)
            elif rank(f"{source}/{conversation.group}", SEED) < self.data.validation_share:
                yield "validation", conversation
            else:
                yield "train", conversation
        for source in sorted(small):
            self.notes[source] = Counter()
            yield from self._split(small[source], self.notes[source])

    def _stream(self, packaged: list[tuple[Split, Conversation]], own_rows: Counter[str]) -> Stream:
        yield from packaged
        yield from self._own_stream(own_rows)

    def _tokenizer(
        self, folder: Path, packaged: list[tuple[Split, Conversation]], own_rows: Counter[str], report: Report
    ) -> Tokenizer:
        """Train the tokenizer or copy the given one, into `folder`; returns it from there."""
        if self.tokenizer is None:
            report("tokenizer", 0, 1)
            texts = self._training_texts(packaged, own_rows)
            trained = tokenizers.train(texts, folder, self.data.tokenizer_vocab_size)
            report("tokenizer", 1, 1)
            return trained
        self.tokenizer.save(folder)
        if self.data.chat_format == "chatml":  # whoever serves the model must use the format it was trained in
            write_durably(folder / "chat_template.jinja", CHATML_TEMPLATE.encode())
        return self.tokenizer

    def _training_texts(self, packaged: list[tuple[Split, Conversation]], own_rows: Counter[str]) -> Iterator[str]:
        """What the model must write or is told, from the train split; user turns repeat other people's."""
        taken: Counter[str] = Counter()
        for split, conversation in self._stream(packaged, own_rows):
            if split != "train" or taken[conversation.source] > TOKENIZER_CHARACTERS:
                continue
            for message in conversation.messages:
                if message.role != "user":
                    taken[conversation.source] += len(message.content)
                    yield message.content


def main() -> None:
    """Prepare the default data, or the files named on the command line, and print what it holds."""
    try:
        folder = prepare(DataConfig(paths=tuple(sys.argv[1:])), lambda *step: print(*step, file=sys.stderr))
    except ValueError as error:
        sys.exit(f"error: {error}")
    manifest = json.loads((folder / "manifest.json").read_text())
    summary = {key: manifest[key] for key in ("statistics", "notes", "tokenizer", "baselines", "licences")}
    print(json.dumps({"folder": str(folder), **summary}, indent=1))


if __name__ == "__main__":
    main()
