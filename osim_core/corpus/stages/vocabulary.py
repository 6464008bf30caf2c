"""Seventh stage: the tokenizer, trained on the train split or copied, in one part."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from osim_core.config import CorpusConfig
from osim_core.corpus import tokenizer as tokenizers
from osim_core.corpus.durable import write_durably
from osim_core.corpus.render import Renderer
from osim_core.corpus.stage import Counts
from osim_core.corpus.stages.divide import TRAIN, Divided
from osim_core.corpus.tokenizer import CHATML_TEMPLATE
from osim_core.model.packaged import SMOLLM2, unpack_smollm2

TOKENIZER_CHARACTERS = 2_000_000  # per source, from its beginning; 4,096 tokens need no more


def tokenizer_identity(config: CorpusConfig, cache: Path) -> tuple[str, str]:
    """("trained", or where the tokenizer is; what its output is keyed by). Raises ValueError if it cannot be read."""
    if config.tokenizer == "trained":
        return "trained", f"trained {config.tokenizer_vocab_size}"
    place = unpack_smollm2(cache) if config.tokenizer == SMOLLM2 else Path(config.tokenizer)
    return str(place), tokenizers.load(place).fingerprint


@dataclass(frozen=True)
class TokenizerJob:
    """tokenizer: "trained", or where it is. parts: all chunks, in order."""

    tokenizer: str
    vocab_size: int
    chat_format: str
    parts: tuple[Divided, ...]


def make_tokenizer(job: TokenizerJob, folder: Path, name: str) -> Counts:
    """Train the tokenizer on the beginning of each source's train split, or copy the given one, into
    `folder/tokenizer`. Counts: fingerprint, vocab_size, end_of_turn."""
    target = folder / "tokenizer"
    if job.tokenizer == "trained":
        made = tokenizers.train(_training_texts(job.parts), target, job.vocab_size)
    else:
        made = tokenizers.load(job.tokenizer)
        made.save(target)
        if job.chat_format == "chatml":  # whoever serves the model must use the format it was trained in
            write_durably(target / "chat_template.jinja", CHATML_TEMPLATE.encode())
    end_of_turn = Renderer(made, job.chat_format).end_of_turn
    return {"fingerprint": made.fingerprint, "vocab_size": made.vocab_size, "end_of_turn": end_of_turn}


def _training_texts(parts: tuple[Divided, ...]) -> Iterator[str]:
    """What the model must write or is told; user turns repeat other people's."""
    taken: Counter[str] = Counter()
    for part in parts:
        if all(taken[source] > TOKENIZER_CHARACTERS for source in part.sources):
            continue  # not even opened: a large corpus would be read for nothing
        for split, side in part.sides():
            conversation = side.conversation
            if split == TRAIN and taken[conversation.source] <= TOKENIZER_CHARACTERS:
                for message in conversation.messages:
                    if message.role != "user":
                        taken[conversation.source] += len(message.content)
                        yield message.content
