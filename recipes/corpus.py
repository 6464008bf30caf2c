"""The corpus: from sources in their published formats to shards that midtraining reads, every row accounted for.

    python recipes/corpus.py packaged                                       # all packaged dialogue; make corpus
    python recipes/corpus.py packaged --rows chats/ --roles helpdesk keep   # and your own rows
    python recipes/corpus.py cluster --executor ray --sources wildchat /raw/wildchat convokit_friends /raw/friends
    python recipes/midtrain.py tiny-cpu --data.corpus data/corpus/latest

Data flow: read -> context -> filter -> cluster (near-duplicates) -> clean (benchmark items) -> divide (train and
validation) -> tokenise -> pack. Each stage is a set of parts, each done once: after a kill, or with another option, the
same command does only what is missing.
"""

import os
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from configs import CORPORA
from osim_core.config import CorpusConfig, to_dict
from osim_core.corpus.durable import exclusive
from osim_core.corpus.executor import Executor, Local, Ray
from osim_core.corpus.plan import open_plan
from osim_core.corpus.prepare import SEED
from osim_core.corpus.shards import ShardSet
from osim_core.corpus.stage import Report
from osim_core.corpus.stages.baselines import BaselineJob, measure_baselines
from osim_core.corpus.stages.check import check_absolute, check_config
from osim_core.corpus.stages.clean import CleanJob, benchmark_file, clean, merge_clean
from osim_core.corpus.stages.cluster import ClusterJob, find_clusters, source_order
from osim_core.corpus.stages.context import ContextJob, context_store, give_contexts, merge_contexts, what_decides
from osim_core.corpus.stages.divide import Divided, DivideJob, divide
from osim_core.corpus.stages.filter import FilterJob, merge_filters, run_filters
from osim_core.corpus.stages.inputs import find_inputs
from osim_core.corpus.stages.pipeline import Pipeline
from osim_core.corpus.stages.publish import Corpus, describe, point_to, publish
from osim_core.corpus.stages.read import ReadJob, check_bad_rows, merge_notes, read
from osim_core.corpus.stages.tokenise import (
    TokeniseJob,
    merge_tokens,
    token_store,
    tokenise,
)
from osim_core.corpus.stages.vocabulary import TokenizerJob, make_tokenizer, tokenizer_identity
from osim_core.observe.corpus_report import write_corpus_report
from osim_core.observe.progress import Stages
from osim_core.observe.run_dir import RunDirectory
from osim_core.parallel import launch
from osim_core.soul.items import benchmark_items


@dataclass(frozen=True)
class Command:
    config: Annotated[CorpusConfig, tyro.conf.arg(name="")]
    executor: Literal["local", "ray"] = "local"
    """A pool of processes on this machine, or the Ray cluster that ray.init finds; the corpus has the same bytes."""
    processes: int = os.cpu_count() or 1
    """Of the local pool; and the threads of the deduplication."""
    ray_address: str | None = None
    """Of a running cluster; all of its nodes must see config.cache under the same path."""
    out: Path | None = None
    """The corpus's folder; by default CACHE/corpus/KEY, with a link CACHE/corpus/latest."""
    runs: Path = Path("runs")
    """Where run directories go."""


def main() -> None:
    commands = {name: Command(config) for name, config in CORPORA.items()}
    choice = tyro.extras.subcommand_type_from_defaults(commands, sort_subcommands=False)
    command, unknown = tyro.cli(
        choice, description=__doc__, return_unknown_args=True, config=(tyro.conf.FlagConversionOff,)
    )
    if unknown:
        raise ValueError(f"unknown option {unknown[0]}; `recipes/corpus.py {command.config.name} --help` lists them")
    config = command.config
    root = Path(config.cache) / "corpus"
    root.mkdir(parents=True, exist_ok=True)
    if command.executor == "local":
        executor = Local(command.processes)
    else:
        check_absolute(config)
        executor = Ray(command.ray_address)
    with executor, exclusive(root / "work.lock"):  # a second build waits, and finds what the first one has done
        corpus = build(config, executor, command.processes, Stages(True, label="corpus"), command.out)
        point_to(root / "latest", corpus.folder)
    run = RunDirectory.create("corpus", config.name, config, command.runs)
    run.write_summary(corpus.summary(command.processes))
    report = write_corpus_report(run.path)
    Console().print(f"corpus: {corpus.folder}\nreport: {report}", soft_wrap=True)


def build(config: CorpusConfig, executor: Executor, threads: int, report: Report, out: Path | None = None) -> Corpus:
    """Build the corpus, or find it. Raises ValueError, in one line, for whatever a person can mend."""
    cache = Path(config.cache).resolve()
    check_config(config, out)
    writer = what_decides(config.context)
    inputs = find_inputs(config)
    packaged = benchmark_items() if config.decontaminate.benchmarks else ()
    items = benchmark_file(packaged, config.decontaminate.against, cache / "corpus")
    tokenizer, fingerprint = tokenizer_identity(config, cache)
    stages = Pipeline(cache / "corpus" / "work", executor, report)

    jobs = {item.name: ReadJob(item, config.chunk_bytes, config.roles) for item in inputs}
    identities = [[item.name, item.identity()] for item in inputs]
    found = stages.run("read", read, jobs, inputs=identities, roles=config.roles, chunk=config.chunk_bytes)
    bad_rows = check_bad_rows(found.results, config.max_bad_share)
    chunks = {chunk["name"]: chunk for result in found.results for chunk in result["chunks"]}
    sources = list(dict.fromkeys(source for chunk in chunks.values() for source in chunk["sources"]))

    jobs = {name: ContextJob(found.file(name), config.context, context_store(config, name)) for name in chunks}
    told = stages.run("context", give_contexts, jobs, writer=writer)
    contexts = merge_contexts(told, config.context)

    jobs = {name: FilterJob(told.file(name), config.filters) for name in chunks}
    kept = stages.run("filter", run_filters, jobs, filters=to_dict(config.filters))
    filters = merge_filters(kept)
    rows = list(accumulate((part["records"] for part in kept.results), initial=0))  # of each chunk's first record

    order = source_order(config.dedup.priorities, sources)
    texts = tuple(kept.file(name) for name, part in kept.parts.items() if part["records"])
    job = ClusterJob(texts, config.dedup.threshold, order, threads)
    alike = stages.run("cluster", find_clusters, {"clusters": job}, order=order, threshold=config.dedup.threshold)

    jobs = {
        name: CleanJob(
            kept.file(name),
            first,
            last - first,
            alike.folder,
            config.dedup.policy,
            items,
            config.decontaminate.policy,
            SEED,
        )
        for name, (first, last) in zip(chunks, pairwise(rows), strict=True)
    }
    options = {"dedup": config.dedup.policy, "items": items and items.name, "policy": config.decontaminate.policy}
    cleaned = stages.run("clean", clean, jobs, seed=SEED, **options)

    tables = tuple(cleaned.file(name, "parquet") for name in chunks)
    job = DivideJob(tables, tuple(sources), config.validation_share)
    divided = stages.run("divide", divide, {"splits": job}, share=config.validation_share)
    (splits,) = divided.results

    parts = {
        name: Divided(
            kept.file(name), cleaned.file(name, "parquet"), tuple(chunks[name]["sources"]), divided.folder, first, last
        )
        for name, (first, last) in zip(chunks, pairwise(splits["first"]), strict=True)
    }
    job = TokenizerJob(tokenizer, config.tokenizer_vocab_size, config.chat_format, tuple(parts.values()))
    made = stages.run("tokenizer", make_tokenizer, {"made": job}, tokenizer=fingerprint, format=config.chat_format)
    (vocabulary,) = made.results
    store = token_store(cache, vocabulary, config.chat_format)
    jobs = {
        name: TokeniseJob(part, made.folder / "tokenizer", config.chat_format, store / name, tuple(sources))
        for name, part in parts.items()
    }
    tokens = stages.run("tokenise", tokenise, jobs)
    merged = merge_tokens(tokens, kept, sources)
    job = BaselineJob(tokens.folder, merged["shards"], tuple(sources), vocabulary["vocab_size"])
    counted = stages.run("baselines", measure_baselines, {"n-grams": job})

    manifest = {
        "sources": sources,
        **merged,
        **describe(sources, merged["statistics"]),
        "tokenizer": vocabulary,
        "baselines": counted.results[0]["baselines"],
        "notes": merge_notes(found, told, splits["sources"]),
        "bad_rows": bad_rows,
        "contexts": contexts,
        "filters": filters,
        "clusters": alike.results[0],
        **merge_clean(cleaned.results, items),
        "split": splits["sources"],
        "seed": SEED,
        "config": {name: value for name, value in to_dict(config).items() if name not in ("cache", "pack")},
    }
    report("publish", 0, 1)
    folder = publish(out or cache / "corpus" / stages.key, manifest, stages)
    report("publish", 1, 1)
    report("pack", 0, 1)
    pack, training = config.pack, ShardSet.open(folder, "train")
    plan = open_plan(
        cache,
        training,
        sequence_length=pack.sequence_length,
        document_length=pack.document_length,
        overlong=pack.overlong,
        mix=pack.epochs,
        seed=pack.seed,
        epoch=0,
    )
    report("pack", 1, 1)
    return Corpus(folder, plan.statistics, stages.done)


if __name__ == "__main__":
    launch.run(main)
