"""Token documents by the SHA-256 of their messages, so that no build tokenises again what another one did.

A store is the shards (shards.py) of one chunk and one tokenizer, whose document ids are the hashes. Each build adds a
shard with what was missing. Memory: 100 bytes or so a document of the chunk, for the hashes.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from osim_core.corpus.conversation import Conversation, RenderedDocument
from osim_core.corpus.durable import write_durably
from osim_core.corpus.render import Renderer
from osim_core.corpus.shards import ShardSet, ShardWriter
from osim_core.corpus.stages import BATCH, BATCH_BYTES

SPLIT = "documents"
SHARD_DOCUMENTS = 1 << 20


def document_hash(conversation: Conversation) -> str:
    """Hex SHA-256 over roles and contents."""
    messages = [[message.role, message.content] for message in conversation.messages]
    return hashlib.sha256(json.dumps(messages, ensure_ascii=False).encode()).hexdigest()


class TokenStore:
    """What is known of one chunk. Raises ValueError naming the file if a stored shard is damaged."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self._folder, self._vocab_size = folder, vocab_size
        self._manifest = {"sources": [SPLIT], "shards": {SPLIT: []}}
        if (folder / "manifest.json").is_file():
            self._manifest = json.loads((folder / "manifest.json").read_text())
        self._open()

    def _open(self) -> None:
        self._shards, self._place = None, {}
        if self._manifest["shards"][SPLIT]:
            self._shards = ShardSet.open(self._folder, SPLIT, manifest=self._manifest)
            self._place = {self._shards.id(number): number for number in range(len(self._shards))}

    def extend(self, conversations: Iterable[Conversation], renderer: Renderer) -> int:
        """Tokenise those that are not here yet, and keep them; returns how many."""
        entries = self._manifest["shards"][SPLIT]
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = 0
        name = f"{SPLIT}-{len(entries):03d}"  # of a killed build there may be files, in no manifest, to write over
        with ShardWriter(self._folder, name, self._vocab_size, [SPLIT], SHARD_DOCUMENTS) as writer:
            for some in self._missing(conversations):
                for document in renderer.render(some):
                    writer.add(document)
                fresh += len(some)
            written = writer.close()
        if written:
            entries += written
            write_durably(self._folder / "manifest.json", json.dumps(self._manifest).encode())
            self._open()
        return fresh

    def _missing(self, conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
        """Those without tokens, each once, with their hash as id, in batches."""
        begun: set[str] = set()
        batch, characters = [], 0
        for conversation in conversations:
            digest = document_hash(conversation)
            if digest in self._place or digest in begun:
                continue
            begun.add(digest)
            batch.append(replace(conversation, id=digest, source=SPLIT))
            characters += sum(len(message.content) for message in conversation.messages)
            if len(batch) == BATCH or characters >= BATCH_BYTES:
                yield batch
                batch, characters = [], 0
        if batch:
            yield batch

    def get(self, digest: str, conversation: Conversation) -> RenderedDocument:
        """The tokens of a stored document, under the id and source of this conversation."""
        found = self._shards.document(self._place[digest])
        return replace(found, id=conversation.id, source=conversation.source)
