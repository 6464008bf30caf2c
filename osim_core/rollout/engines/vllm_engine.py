"""Real vLLM as a rollout engine, on CPUs and GPUs, in a process of its own that may be killed at any time.

    engine = VllmEngine(Path("models/tiny"), EngineOptions(context=1024))
    engine.generate(...), engine.push(...)                     # rollout/engine.py says what they promise
    engine.sleep(); train(); push(...); engine.wake()          # colocated: give the GPU's memory to the trainer
    engine.close()

A dead engine (killed, out of memory, silent for longer than `patience`) is replaced by a fresh process with the weights
pushed last, and the call it died of is made once more; seeds make it the same call. If it kills that one too, its items
are Missing. After `max_restarts` deaths the engine gives up with EngineStopped.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, Literal

import torch

from osim_core.missing import Missing
from osim_core.rollout.engine import DIED, Completion, EngineStopped, Sampling
from osim_core.rollout.engines.refusals import check_version, fitting, too_long
from osim_core.rollout.engines.snapshot import read_config, tensor_shapes, write_snapshot

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TRITON_INTERPRET")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """context: the most tokens of prompt and reply together; max_sequences: how many are decoded at a time."""

    context: int = 1024
    max_sequences: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0  # of what is sampled without a seed
    threads: int = 1  # on CPUs
    cache_gib: int = 1  # of keys and values, on CPUs
    gpu_memory: float = 0.5  # share of the GPU that vLLM may take while awake
    patience: float = 1800.0  # seconds for one call, or for starting
    max_restarts: int = 3
    scratch: str | None = None  # where pushed weights lie, twice at most; None: the temporary folder. /dev/shm is quick


class _Died(EngineStopped):
    """The engine process ended before it answered."""


class VllmEngine:
    """vLLM serving the model of a Hugging Face folder.

    version  of the weights: `version` for those of the folder
    deaths   how often the process ended by itself

    Raises ValueError where vLLM is not installed, the folder is not a model or the context exceeds its positions, and
    RuntimeError, with the end of its log, where vLLM does not start.
    """

    def __init__(self, folder: Path, options: EngineOptions, version: int = 0) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ValueError("vLLM is not installed; requirements-rollout.txt says how (`make test` does it)")
        self.options, self.version, self.deaths = options, version, 0
        self.shapes, config = tensor_shapes(folder), read_config(folder)
        self.vocab_size, positions = config["vocab_size"], config["max_position_embeddings"]
        if options.context > positions:
            raise ValueError(f"engine: context {options.context} is longer than the {positions} positions of {folder}")
        self.scratch = Path(tempfile.mkdtemp(prefix="osim-engine-", dir=options.scratch))
        self.folder = folder.resolve()
        self._process: subprocess.Popen | None = None
        self._asleep = False
        try:
            self._start()
        except _Died as error:
            self.close()
            raise RuntimeError(f"vLLM did not start on {folder}: {error}") from None

    @property
    def pid(self) -> int | None:
        """Of the process that serves now."""
        return self._process and self._process.pid

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling]) -> list[Completion | Missing]:
        fits = fitting(prompts, self.vocab_size, self.options.context)
        wanted = [one for one, fit in zip(sampling, fits, strict=True) if fit]
        return self._answers("generate", prompts, fits, wanted)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...] | Missing]:
        return self._answers("score", sequences, fitting(sequences, self.vocab_size, self.options.context))

    def next_logprobs(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]
    ) -> list[tuple[float, ...] | Missing]:
        """Log-probs, over the whole vocabulary, of some tokens that may follow each prompt: at most 128 of them. One
        prefill of what the prefix cache does not hold, where `score` computes every sequence from its start."""
        fits = fitting(prompts, self.vocab_size, self.options.context)
        wanted = [tuple(ids) for ids, fit in zip(tokens, fits, strict=True) if fit]
        return self._answers("next_logprobs", prompts, fits, wanted)

    def push(self, version: int, weights: Iterable[tuple[str, torch.Tensor]], checksum: str) -> None:
        check_version(self.version, version)
        folder = self.scratch / f"version-{version}"
        write_snapshot(weights, self.shapes, self.folder, folder)
        try:
            self._call("load", str(folder), version, checksum)
        except BaseException:
            shutil.rmtree(folder)
            raise
        old, self.folder, self.version = self.folder, folder, version
        if old.parent == self.scratch:
            shutil.rmtree(old)

    def sleep(self) -> None:
        """Give the memory of weights and cache back until `wake`; a push meanwhile is checked now and loaded then."""
        self._call("sleep")
        self._asleep = True

    def wake(self) -> None:
        self._asleep = False
        self._call("wake", str(self.folder), self.version)

    def close(self) -> None:
        if self._process:
            self._kill()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _answers(self, method: str, sequences: Sequence[Sequence[int]], fits: list[bool], *values) -> list[Any]:
        """The engine's answer to each sequence that fits, Missing for the others."""
        if self._asleep:
            raise ValueError(f"{method}: the engine is asleep; wake it first")
        fitting = [tuple(sequence) for sequence, fit in zip(sequences, fits, strict=True) if fit]
        try:
            answers = iter(self._call(method, fitting, *values) if fitting else [])
        except _Died as error:
            answers = iter([Missing(DIED, str(error))] * len(fitting))
        return [next(answers) if fit else too_long(self.options.context) for fit in fits]

    def _call(self, method: str, *values) -> Any:
        """Answer of the engine process, made twice if it dies. Raises ValueError for what it refuses, else _Died."""
        try:
            return self._ask(method, *values)
        except _Died:
            return self._ask(method, *values)

    def _ask(self, method: str, *values) -> Any:
        if self._process is None:
            self._start()
        done, answer = self._exchange((method, values))
        if not done:
            raise ValueError(answer)
        return answer

    def _exchange(self, message: Any) -> Any:
        """Send a message and wait for the answer. Raises _Died, with the process buried."""
        try:
            self._pipe.send(message)
            if self._pipe.poll(self.options.patience):
                return self._pipe.recv()
            reason = f"no answer within {self.options.patience:g} s"
            self._kill()
        except (EOFError, ConnectionError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)  # it is ending: let it, for its exit code
            reason = f"exit code {self._kill()}"
        self.deaths += 1
        raise _Died(f"{reason}; its log ends: {self._log_end()}")

    def _start(self) -> None:
        if self.deaths > self.options.max_restarts:
            raise EngineStopped(
                f"the rollout engine died {self.deaths} times; its log ends: {self._log_end()}. Resume the run"
            )
        self._pipe, theirs = Pipe()
        with open(self.scratch / "engine.log", "ab") as log, theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "osim_core.rollout.engines.vllm_worker", str(theirs.fileno())],
                env=self._environment(),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a group of its own, that ends with it
            )
        self._exchange((str(self.scratch), str(self.folder), self.version, self.options))
        if self._asleep:
            self._exchange(("sleep", ()))

    def _environment(self) -> dict[str, str]:
        """The trainer's environment without its launcher's variables, for a quiet vLLM of so many threads."""
        kept = {k: v for k, v in os.environ.items() if k not in LAUNCHER and not k.startswith("TORCHELASTIC_")}
        ours = {
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            "OMP_NUM_THREADS": str(self.options.threads),
        }
        if not torch.cuda.is_available():
            return (
                kept
                | ours
                | {
                    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                    "VLLM_CPU_KVCACHE_SPACE": str(self.options.cache_gib),
                    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                }
            )
        visible = kept.get("CUDA_VISIBLE_DEVICES")
        here = torch.cuda.current_device()
        return (
            kept
            | ours
            | {
                "CUDA_VISIBLE_DEVICES": visible.split(",")[here] if visible else str(here),
                "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # IPC handles travel pickled, between our own processes
            }
        )

    def _log_end(self) -> str:
        lines = (self.scratch / "engine.log").read_text(errors="replace").split("\n")
        return " / ".join([line.strip() for line in lines if line.strip()][-3:]) or "(empty)"

    def _kill(self) -> int:
        """End the process, if it has not ended; returns its exit code."""
        process, self._process = self._process, None
        self._pipe.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # vLLM's own children, too
        return process.wait()
