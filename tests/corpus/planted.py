"""A small corpus of several formats, with what a build must find in it planted: duplicates, benchmark items, bad rows.

Also what a build writes, and a build that is killed, for the tests of recipes/corpus.py.
"""

import json
import os
import random
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from corpus import build
from osim_core.config import CorpusConfig, DecontaminateConfig, PackConfig
from osim_core.corpus import stage as stage_module
from osim_core.corpus.executor import Executor, Local
from osim_core.corpus.sources.records import MAX_ROW_BYTES
from osim_core.corpus.stages.publish import Corpus

SYLLABLES = [
    "ba",
    "ke",
    "li",
    "mo",
    "nu",
    "pa",
    "re",
    "si",
    "to",
    "vu",
    "wa",
    "xe",
    "yi",
    "zo",
    "cha",
    "dre",
    "flu",
    "gra",
]
ITEMS = {
    "bench/0": "The violet lamp stood in the attic until Marta carried it down to the cellar before anybody came home.",
    "bench/1": "Oliver asked the clerk whether the second ticket could be returned without losing the whole deposit.",
    "bench/2": "Nobody in the village had ever seen the heron land twice upon the same grey stone by the mill.",
}


class Talk:
    """Sentences of invented words: no two of them alike unless one is repeated on purpose."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def sentence(self, words: int = 14) -> str:
        spoken = ["".join(self._random.choices(SYLLABLES, k=3)) for _ in range(words)]
        return " ".join(spoken).capitalize() + "."

    def turns(self, count: int = 4) -> list[str]:
        return [self.sentence() for _ in range(count)]


def row(source: str, turns: list[str], group: str, system: str = "") -> dict:
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
    return {"data_source": source, "messages": messages, "group": group}


def write_lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def plant(folder: Path) -> CorpusConfig:
    """Write the corpus under `folder`; returns the config that builds it.

    friends   ConvoKit, 30 conversations of 10 people in pairs
    wildchat  40 chats, of which numbers 0-4 are in `helpdesk`, too, and 5 holds bench/0 in its last turn
    helpdesk  60 rows of 20 people, in JSONL: 0-4 as said; 10-13 are 14-17 with one word changed at the end; 20 holds
              bench/1 shouted, 21 bench/2 over two turns
    street    50 rows in parquet, 25 groups; the last one says too little
    bad       a row that is not UTF-8, one that is not JSON, a null message and a row of 17 MB among `helpdesk`, a
              parquet file that is cut short
    """
    friends = folder / "friends"
    friends.mkdir(parents=True)
    talk = Talk(1)
    utterances = []
    for number in range(30):
        pair = (f"p{number % 5}", f"p{5 + number % 4}")
        for turn in range(6):
            last = f"c{number}u{turn - 1}" if turn else None
            utterances.append(
                {
                    "id": f"c{number}u{turn}",
                    "conversation_id": f"c{number}",
                    "speaker": pair[turn % 2],
                    "reply-to": last,
                    "text": talk.sentence(),
                }
            )
    write_lines(friends / "utterances.jsonl", utterances)
    (friends / "speakers.json").write_text(json.dumps({f"p{n}": {"meta": {"gender": "female"}} for n in range(10)}))

    talk = Talk(2)
    chats = [talk.turns() for _ in range(40)]
    chats[5][3] = f"I remember it well. {ITEMS['bench/0']} And so on."
    write_lines(
        folder / "wildchat.jsonl",
        [
            {"conversation": [{"role": ("user", "assistant")[n % 2], "content": t} for n, t in enumerate(turns)]}
            for turns in chats
        ],
    )

    talk = Talk(3)
    desk = [talk.turns() for _ in range(60)]
    desk[:5] = chats[:5]
    for number in range(10, 14):
        changed = list(desk[number + 4])
        changed[-1] = f"{changed[-1].rpartition(' ')[0]} tomorrow."
        desk[number] = changed
    desk[20][2] = ITEMS["bench/1"].upper().replace(" ", "  ")
    half = ITEMS["bench/2"].split()
    desk[21][1:3] = [" ".join(half[:9]), " ".join(half[9:])]
    rows = [row("helpdesk", turns, f"h{n % 20}") for n, turns in enumerate(desk)]
    lines = [json.dumps(each).encode() for each in rows]
    lines[30:30] = [b'{"data_source": "helpdesk", "messages": "\xff"}', b'{"data_source": "helpdesk"']
    nothing = row("helpdesk", talk.turns(), "h1")
    nothing["messages"][1]["content"] = None
    lines.append(json.dumps(nothing).encode())
    lines.append(json.dumps(row("helpdesk", ["x" * (MAX_ROW_BYTES + 1000), "yes"], "h2")).encode())
    own = folder / "own"
    own.mkdir()
    (own / "a_helpdesk.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    talk = Talk(4)
    streets = [row("street", talk.turns(), f"s{n % 25}", "You meet somebody in the street.") for n in range(50)]
    streets[49]["messages"] = [{"role": "user", "content": "You?"}, {"role": "assistant", "content": "Hm."}]
    pq.write_table(pa.Table.from_pylist(streets), own / "b_street.parquet")
    whole = (own / "b_street.parquet").read_bytes()
    (own / "c_cut.parquet").write_bytes(whole[: len(whole) // 2])

    items = [{"id": name, "benchmark": "bench", "text": text} for name, text in ITEMS.items()]
    write_lines(folder / "items.jsonl", items)
    return CorpusConfig(
        name="planted",
        sources={"convokit_friends": str(friends), "wildchat": str(folder / "wildchat.jsonl")},
        rows=(str(own),),
        roles={"helpdesk": "keep", "street": "keep"},
        max_bad_share=1.0,
        decontaminate=DecontaminateConfig(benchmarks=False, against=(str(folder / "items.jsonl"),)),
        validation_share=0.1,
        tokenizer_vocab_size=300,
        pack=PackConfig(sequence_length=256),
        chunk_bytes=16_000,
        cache=str(folder / "data"),
    )


def built(config: CorpusConfig, executor: Executor | None = None, **changes) -> Corpus:
    """Build with the config, or with some of its fields changed."""
    return build(replace(config, **changes), executor or Local(1), 1, lambda stage, done, total: None)


def contents(corpus: Corpus) -> dict[str, bytes]:
    """Every file of the corpus's folder, but for what opening it for training leaves there."""
    files = (path for path in corpus.folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(corpus.folder)): path.read_bytes()
        for path in files
        if not path.name.endswith((".lock", ".verified.json"))
    }


class Watch:
    """Follows a build by its stages: how often each makes something durable, which parts it finishes, and where it is
    to be killed (`at`: in that stage, at its so manieth call of fsync)."""

    def __init__(self, log: Path | None = None, at: tuple[str, int] | None = None) -> None:
        self.stage, self.calls, self.log, self.at = "", Counter(), log, at

    def report(self, stage: str, done: int, total: int) -> None:
        self.stage = stage

    def fsync(self, descriptor: int) -> None:
        self.calls[self.stage] += 1
        if self.at == (self.stage, self.calls[self.stage]):
            os.kill(os.getpid(), signal.SIGKILL)

    def do(self, work: tuple) -> tuple:
        result = DO(work)
        with self.log.open("a") as file:
            file.write(f"{self.stage} {result[0]}\n")
        return result


DO = stage_module._do


def watched(config: CorpusConfig, log: Path, at: tuple[str, int] | None, answer=None) -> None:
    """In a process of its own: a build that notes each part it finishes in `log`, and is killed `at` some point."""
    watch = Watch(log, at)
    os.fsync, stage_module._do = watch.fsync, watch.do
    corpus = build(config, Local(1), 1, watch.report)
    if answer is not None:
        answer.put((corpus.folder, watch.calls))
