"""Judgements per second: a prefill in the process, vLLM, and HTTP, against generating the verdict with the same model.

    python -m benchmarks judge [--replies 8] [--context 600] [--repeats 3] [--threads 2] [--out FILE]

SmolLM2-135M-Instruct, fp32, on one machine, in one run; a judgement is one dimension of one reply, and every round has
fresh contexts, as a step of RL has, so that no cache of the round before serves it. Contenders take turns:

  in-process tree        InProcessJudge: rubric, context and replies packed once
  in-process, alone      the same judge asked about one dimension of one reply at a time: nothing is shared
  vLLM prefill           VllmJudge: label log-probs, prefix cache on
  vLLM generates         vLLM writes the verdict as JSON, greedily, prefix cache on
  transformers generates the same prompts in one padded batch
  HTTP logprobs, HTTP json   HttpJudge against `vllm serve` on this machine: first-token log-probs; held to a schema

A generated verdict counts as a judgement whether or not it can be read; `readable` says how many could. Before
anything is timed, the two in-process contenders must agree to 1e-5 and vLLM's prefill with them to 1e-3.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.ledger import quantiles, record
from osim_core.config import LayoutConfig
from osim_core.corpus.conversation import Message
from osim_core.corpus.render import Renderer
from osim_core.corpus.tokenizer import load as load_tokenizer
from osim_core.judge.http_judge import HttpJudge, json_body, read_object
from osim_core.judge.prompt import calls
from osim_core.judge.rubric import JudgeItem, Rubric, Verdict, load_rubric
from osim_core.judge.transport import Patience
from osim_core.judge.vllm_judge import VllmJudge
from osim_core.missing import Missing
from osim_core.model.packaged import unpack_smollm2
from osim_core.parallel import layout
from osim_core.rollout.engine import Sampling
from osim_core.rollout.engines.vllm_engine import EngineOptions
from tests.support.judge_server import completion
from tests.support.vllm_server import vllm_server

LINES = (
    "I was thinking we could take the train this time, it is cheaper and you can read on the way.",
    "Did you ask your brother whether he still has that tent?",
    "The last time it rained for three days and nobody had brought a spare pair of shoes.",
    "Fine with me, but I have to be back on Sunday because of the shift.",
)
RUBRIC = load_rubric("intent")
Contender = Callable[[Sequence[JudgeItem]], list[Verdict] | int]


def items_of(round_: int, replies: int, context_tokens: int, tokenizer) -> list[JudgeItem]:
    """Replies to one context of about so many tokens, which no other round has."""
    context = f"Person {round_} wants to plan a weekend trip with friends.\n"
    line = 0
    while len(tokenizer.encode_batch([context])[0]) < context_tokens:
        context += f"{'AB'[line % 2]}: {line + round_}. {LINES[line % len(LINES)]}\n"
        line += 1
    words = " ".join(LINES).split()
    texts = [" ".join(words[i * 5 : i * 5 + 24]) for i in range(replies)]
    return [JudgeItem(id=str(i), rubric=RUBRIC.id, context=context, reply=text) for i, text in enumerate(texts)]


def one_by_one(judge, rubrics: Sequence[Rubric]) -> Contender:
    """The judge asked about one dimension of one item at a time; verdicts put together again."""

    def score(items: Sequence[JudgeItem]) -> list[Verdict]:
        found = []
        for item in items:
            alone = [judge.score([replace(item, rubric=rubric.id)])[0] for rubric in rubrics]
            values = {name: value for verdict in alone for name, value in verdict.values.items()}
            found.append(Verdict(values=values, score=0.0))
        return found

    return score


def verdict_prompts(items: Sequence[JudgeItem], renderer: Renderer) -> tuple[list[list[int]], int]:
    """Prompts that ask for all dimensions as JSON, as the HTTP judge does, and the most tokens of an answer."""
    bodies = [json_body(RUBRIC, calls(RUBRIC, item)[0]) for item in items]
    prompts = [renderer.prompt([Message(m["role"], m["content"]) for m in body["messages"]]) for body in bodies]
    return [prompt.tolist() for prompt in prompts], bodies[0]["max_tokens"]


def readable(texts: Sequence[str]) -> int:
    """How many texts are verdicts."""
    answers = [read_object(completion(text)) for text in texts]
    return sum(not isinstance(a, Missing) and {d.name for d in RUBRIC.dimensions} <= a.keys() for a in answers)


def generate_with_vllm(engine, renderer: Renderer) -> Contender:
    def score(items: Sequence[JudgeItem]) -> int:
        prompts, most = verdict_prompts(items, renderer)
        stop = Sampling(temperature=0.0, max_tokens=most, stop_token_ids=(renderer.end_of_turn,))
        done = engine.generate(prompts, [stop] * len(prompts))
        return readable([renderer.tokenizer.decode(c.tokens).removesuffix("<|im_end|>") for c in done])

    return score


def generate_with_transformers(folder: Path, renderer: Renderer) -> Contender:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def score(items: Sequence[JudgeItem]) -> int:
        prompts, most = verdict_prompts(items, renderer)
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=renderer.end_of_turn,
            pad_token_id=renderer.end_of_turn,
        )
        texts = [renderer.tokenizer.decode(row[longest:].tolist()).split("<|im_end|>")[0] for row in out]
        return readable(texts)

    return score


def check(truth: list[Verdict], other: list[Verdict], tolerance: float, who: str) -> None:
    """Raises ValueError where values differ."""
    gap = max(abs(a.values[n] - b.values[n]) for a, b in zip(truth, other, strict=True) for n in a.values)
    if gap > tolerance:
        raise ValueError(
            f"{who} differs from the in-process tree by {gap:.2e}, more than {tolerance}; nothing is timed"
        )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks judge", description=__doc__.splitlines()[0])
    for name, value in (("replies", 8), ("context", 600), ("repeats", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    layout.initialize(LayoutConfig(), seed=1)
    from osim_core.judge.inprocess import InProcessJudge  # needs megatron-core's groups

    folder = unpack_smollm2(Path("data"))
    tokenizer = load_tokenizer(folder)
    renderer = Renderer(tokenizer)
    alone = [replace(RUBRIC, id=d.name, dimensions=(d,)) for d in RUBRIC.dimensions]
    tree = InProcessJudge.from_hf("tree", folder, [RUBRIC, *alone], LayoutConfig(), min_mass=0.0)
    engine_options = EngineOptions(context=4096, max_sequences=options.replies, threads=options.threads)
    with ExitStack() as stack:
        vllm = stack.enter_context(closing(VllmJudge.from_hf("vllm", folder, [RUBRIC], engine_options, min_mass=0.0)))
        log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "vllm.log"
        url = stack.enter_context(vllm_server(folder, log, context=4096, threads=options.threads))
        patience = Patience(timeout_s=600, hedge_s=None, deadline_s=1800, concurrency=options.replies)
        http = {
            way: HttpJudge(way, url, "judge", [RUBRIC], patience, answers=way, min_mass=0.0)
            for way in ("logprobs", "json")
        }
        contenders: dict[str, Contender] = {
            "in-process tree": tree.score,
            "in-process, alone": one_by_one(tree, alone),
            "vLLM prefill": vllm.score,
            "vLLM generates": generate_with_vllm(vllm.engine, renderer),
            "transformers generates": generate_with_transformers(folder, renderer),
            "HTTP logprobs": http["logprobs"].score,
            "HTTP json": http["json"].score,
        }
        first = items_of(0, options.replies, options.context, tokenizer)
        results = {name: contender(first) for name, contender in contenders.items()}  # warms everything up
        check(results["in-process tree"], results["in-process, alone"], 1e-5, "the judge asked alone")
        check(results["in-process tree"], results["vLLM prefill"], 1e-3, "vLLM's prefill")
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for round_ in range(1, options.repeats + 1):
            items = items_of(round_, options.replies, options.context, tokenizer)
            for name, contender in contenders.items():
                start = time.perf_counter()
                results[name] = contender(items)
                seconds[name].append(time.perf_counter() - start)
    report(options, contenders, results, seconds)


def report(options, contenders, results, seconds) -> None:
    """A row per contender, and a table."""
    judgements = options.replies * len(RUBRIC.dimensions)
    base = quantiles(seconds["in-process tree"])["p50_s"]
    for name in contenders:
        timed = quantiles(seconds[name])
        found = results[name]
        if isinstance(found, int):
            usable = found * len(RUBRIC.dimensions)
        else:
            usable = sum(not isinstance(v, Missing) for verdict in found for v in verdict.values.values())
        result = {
            "judgements_per_s": judgements / timed["p50_s"],
            "tree_is_times_faster": timed["p50_s"] / base,
            "readable": usable / judgements,
            **timed,
        }
        case = {
            "implementation": name,
            "model": "smollm2-135m",
            "dtype": "float32",
            "replies": options.replies,
            "dimensions": len(RUBRIC.dimensions),
            "context_tokens": options.context,
            "threads": options.threads,
            "load": round(os.getloadavg()[0], 1),
        }
        record("judge", case, result, options.out)
        print(
            f"{name:<24}{result['judgements_per_s']:>9.2f} judgements/s  {result['tree_is_times_faster']:>6.2f} x the "
            f"tree's time  {result['readable']:>4.0%} readable"
        )
