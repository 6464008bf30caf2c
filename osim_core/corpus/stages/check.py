"""What a build is refused for before anything is read, in one line each."""

from pathlib import Path

from osim_core.config import CorpusConfig
from osim_core.corpus.dedup import check_settings
from osim_core.corpus.roles import RoleTable
from osim_core.corpus.stages.filter import make_filters


def check_config(config: CorpusConfig, out: Path | None) -> None:
    """Raises ValueError for settings that cannot work, or an `out` that holds something else than a corpus."""
    for name in ("max_bad_share", "validation_share"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name}: {getattr(config, name)} is not in [0, 1]")
    if config.chunk_bytes < 1:
        raise ValueError(f"chunk_bytes: {config.chunk_bytes} is not a positive number")
    if config.pack.sequence_length < 2:
        raise ValueError(
            f"pack.sequence_length: must be at least 2 to predict anything, got {config.pack.sequence_length}"
        )
    check_settings(config.dedup.threshold, 1)
    make_filters(config.filters)
    RoleTable(config.roles)
    if out is not None and out.exists() and not (out / "manifest.json").is_file():
        raise ValueError(f"{out}: exists and is no corpus; name another --out or remove it")


def check_absolute(config: CorpusConfig) -> None:
    """Raises ValueError for a relative path to data: workers of a cluster run in folders of their own."""
    for path in (*config.sources.values(), *config.rows):
        if not Path(path).is_absolute():
            raise ValueError(f"--executor ray: {path} must be an absolute path, one that every node sees")
