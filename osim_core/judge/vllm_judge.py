"""The judge in a vLLM process of its own: label log-probs of prefills, which vLLM's prefix cache shares.

    judge = VllmJudge.from_hf("held out", folder, rubrics, EngineOptions(context=4096))
    verdicts = judge.score(items)

For judges that the trainer's layout cannot hold, and for other families than ours. Prompts and labels are those of the
in-process judge; vLLM is asked, per prompt and token of a label so far, for the log-probs of the tokens that may come
next, over its whole vocabulary. Prompts are sent rubric by rubric and context by context, so that the cache finds the
prefix of the one before. An engine that died is replaced once; what it died of again is Missing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from osim_core.corpus.tokenizer import load as load_tokenizer
from osim_core.judge.calibrate import Calibration
from osim_core.judge.identity import rubric_versions, weights_digest
from osim_core.judge.labels import judge_labels
from osim_core.judge.prompt import Call, JudgePrompt, calls
from osim_core.judge.reading import Reading, read, verdict
from osim_core.judge.rubric import JudgeItem, Rubric, Verdict, check_item
from osim_core.missing import Missing
from osim_core.model.hf_config import model_config_from_hf
from osim_core.rollout.engines.vllm_engine import EngineOptions, VllmEngine
from osim_kernels.judge_score import JudgeLabels


class VllmJudge:
    """Scores with an engine that serves the judge model.

    engine   frozen: nothing is ever pushed to it. `close` ends it
    prompt   the judge's own tokenizer and chat format
    weights  names the weights in `identity`
    min_mass, calibrations   as of the in-process judge
    """

    def __init__(
        self,
        name: str,
        engine: VllmEngine,
        prompt: JudgePrompt,
        rubrics: Iterable[Rubric],
        *,
        weights: str,
        min_mass: float = 0.2,
        calibrations: Mapping[str, Mapping[str, Calibration]] | None = None,
    ) -> None:
        self.name, self.engine, self.prompt, self.min_mass = name, engine, prompt, min_mass
        self.rubrics = {rubric.id: rubric for rubric in rubrics}
        self.calibrations = calibrations or {}
        self.labels = {rubric.id: judge_labels(rubric, prompt, {}) for rubric in self.rubrics.values()}
        versions = rubric_versions(self.rubrics.values())
        self.identity = f"vllm {weights} {prompt.identity} rubrics {versions} mass {min_mass}"

    @classmethod
    def from_hf(
        cls,
        name: str,
        folder: Path,
        rubrics: Iterable[Rubric],
        engine: EngineOptions | None = None,
        *,
        chat_format: str = "template",
        answer_prefix: str = "",
        **options,
    ) -> "VllmJudge":
        """The judge of a Hugging Face folder, in a vLLM that it starts; `options` as of the class.

        Without `engine` options the context is the model's, 8,192 tokens at most.
        """
        prompt = JudgePrompt(load_tokenizer(folder), chat_format, answer_prefix)
        context = min(8192, model_config_from_hf(folder).max_position_embeddings)
        engine = engine or EngineOptions(context=context)
        weights = f"{engine.dtype} {weights_digest(folder)}"
        return cls(name, VllmEngine(folder, engine), prompt, rubrics, weights=weights, **options)

    def score(self, items: Sequence[JudgeItem]) -> list[Verdict]:
        """One verdict per item, in order."""
        rubrics = [check_item(item, self.rubrics) for item in items]
        asked = [(i, call) for i, rubric in enumerate(rubrics) for call in calls(rubric, items[i])]
        orders: list[list[dict[str, Reading | Missing]]] = [[] for _ in items]
        for (i, _), readings in zip(asked, self._readings([(rubrics[i], call) for i, call in asked]), strict=True):
            orders[i].append(readings)
        return [verdict(rubric, own) for rubric, own in zip(rubrics, orders, strict=True)]

    def _readings(self, asked: Sequence[tuple[Rubric, Call]]) -> list[dict[str, Reading | Missing]]:
        """Dimension -> reading of every call."""
        prompts, tokens, places = [], [], []
        for index, (rubric, call) in enumerate(asked):
            labels = self.labels[rubric.id]
            (paths,) = self.prompt.paths(rubric, [call])
            for s, (j, prefix) in enumerate(labels.contexts):
                prompts.append((*sum(paths[j], ()), *prefix))
                tokens.append([token for context, token in labels.edges if context == s])
                places.append((index, s))
        order = sorted(range(len(prompts)), key=lambda i: prompts[i])
        answers = self.engine.next_logprobs([prompts[i] for i in order], [tokens[i] for i in order])
        found: list[dict[int, Mapping[int, float] | Missing]] = [{} for _ in asked]
        for i, answer in zip(order, answers, strict=True):
            index, s = places[i]
            found[index][s] = answer if isinstance(answer, Missing) else dict(zip(tokens[i], answer, strict=True))
        return [self._of_call(rubric, next_) for (rubric, _), next_ in zip(asked, found, strict=True)]

    def _of_call(
        self, rubric: Rubric, next_: Mapping[int, Mapping[int, float] | Missing]
    ) -> dict[str, Reading | Missing]:
        """next_: query row -> token -> log-prob."""
        labels = self.labels[rubric.id]
        calibrations = self.calibrations.get(rubric.id, {})
        found: dict[str, Reading | Missing] = {}
        for j, dimension in enumerate(rubric.dimensions):
            rows = [next_[s] for s, (k, _) in enumerate(labels.contexts) if k == j]
            missing = next((row for row in rows if isinstance(row, Missing)), None)
            if missing is not None:
                found[dimension.name] = missing
                continue
            masses = _log_masses(labels, j, next_)
            found[dimension.name] = read(
                dimension, masses, calibrations.get(dimension.name, Calibration()), self.min_mass
            )
        return found

    def close(self) -> None:
        """End the engine."""
        self.engine.close()


def _log_masses(labels: JudgeLabels, j: int, next_: Mapping[int, Mapping[int, float]]) -> list[float]:
    """Log-probability of each label of dimension j: over its variants the sum, along each the product."""
    row = {context: s for s, context in enumerate(labels.contexts)}
    masses = []
    for variants in labels.dimensions[j].labels:
        paths = [sum(next_[row[j, v[:n]]][token] for n, token in enumerate(v)) for v in variants]
        highest = max(paths)
        masses.append(highest + math.log(sum(math.exp(p - highest) for p in paths)) if highest > -math.inf else highest)
    return masses
