"""What tells one judge from another: its weights, and the versions of its rubrics."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from osim_core.corpus.durable import sha256_of
from osim_core.judge.rubric import Rubric


def weights_digest(folder: Path) -> str:
    """SHA-256 over the weight files of a Hugging Face folder, hex; about a second a gigabyte."""
    files = sorted(folder.glob("*.safetensors"))
    return hashlib.sha256("".join(sha256_of(path) for path in files).encode()).hexdigest()


def rubric_versions(rubrics: Iterable[Rubric]) -> str:
    """Each rubric with its version."""
    return ",".join(f"{rubric.id}@{rubric.version}" for rubric in rubrics)
