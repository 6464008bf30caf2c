"""vLLM's own OpenAI-compatible server on this machine, for as long as a `with` block lasts."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.support.workers import free_port

PATIENCE = 600  # seconds; a minute on a calm machine, mostly imports


@contextlib.contextmanager
def vllm_server(folder: Path, log: Path, *, context: int = 2048, threads: int = 1) -> Iterator[str]:
    """Serve a Hugging Face folder as the model "judge"; yields the base address. Raises RuntimeError, with the end of
    its log, if it does not come up."""
    port = free_port()
    command = [
        # not `vllm serve`, which looks for a distribution called vllm, and the build for CPUs has another name
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "judge"),
        *("--dtype", "float32", "--enforce-eager", "--max-model-len", str(context), "--max-num-seqs", "16"),
        *("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
        "--disable-uvicorn-access-log",
    ]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its engine process, too
        process.wait()


def _wait(process: subprocess.Popen, address: str, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.5)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise RuntimeError(f"vLLM's server did not come up within {PATIENCE} s (exit code {process.poll()}):\n{tail}")
