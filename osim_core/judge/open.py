"""The judge that a config names.

judge = open_judge(config.reward.judge, "train", config.layout, Path(config.cache))      # None for "none"
"""

from pathlib import Path

from osim_core.config import JudgeConfig, LayoutConfig
from osim_core.judge.cache import AnswerCache
from osim_core.judge.http_judge import HttpJudge
from osim_core.judge.panel import CountedJudge, MissingLimit
from osim_core.judge.rubric import FOLDER, Judge, load_rubric
from osim_core.judge.transport import Patience
from osim_core.judge.vllm_judge import VllmJudge
from osim_core.model.start import hugging_face_folder
from osim_core.reward.detectors.text import words
from osim_core.reward.planted import PlantedJudge

PLANTED_WORDS = 80  # that win the planted judge over: more than people write, and than 384 bytes hold


def open_judge(
    config: JudgeConfig, name: str, layout: LayoutConfig, cache: Path, limit: MissingLimit | None = None
) -> Judge | None:
    """Raises ValueError, in one line, for a model that is not there or a backend that does not fit the layout. Needs
    osim_core.parallel.layout.initialize for an in-process judge."""
    if config.backend == "none":
        return None
    rubrics = [load_rubric(path.stem) for path in sorted(FOLDER.glob("*.json"))]
    if config.backend == "planted":
        names = {word for rubric in rubrics for dimension in rubric.dimensions for word in words(dimension.name)}
        return PlantedJudge(rubric_words=tuple(sorted(names)), enough_words=PLANTED_WORDS)
    if not config.model:
        raise ValueError(f"judge {name}: backend {config.backend} needs a model; set --reward.judge.model")
    if config.backend == "http":
        if not config.url:
            raise ValueError(f"judge {name}: backend http needs the server's address; set --reward.judge.url")
        judge: Judge = HttpJudge(
            name,
            config.url,
            config.model,
            rubrics,
            Patience(deadline_s=config.deadline, concurrency=config.concurrency),
            min_mass=config.min_mass,
            key_variable=config.key_variable,
            cache=AnswerCache(cache / "judge" / f"{name}.sqlite"),
        )
        return CountedJudge(judge, limit or MissingLimit())
    folder = hugging_face_folder(config.model, cache)
    if config.backend == "vllm":
        judge = VllmJudge.from_hf(name, folder, rubrics, min_mass=config.min_mass)
    else:
        if layout.tensor > 1:
            raise ValueError(
                f"judge {name}: an in-process judge is asked by one rank alone, so it needs layout.tensor 1, got "
                f"{layout.tensor}; take the vllm or http backend"
            )
        from osim_core.judge.inprocess import InProcessJudge  # needs megatron-core's groups

        judge = InProcessJudge.from_hf(name, folder, rubrics, layout, min_mass=config.min_mass)
    return CountedJudge(judge, limit or MissingLimit())
