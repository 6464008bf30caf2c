"""The judge on the training devices: a frozen Megatron model, one prefill of packed prompt trees, no decoding.

    judge = InProcessJudge.from_hf("judge", folder, rubrics, layout)        # in any layout without PP and CP
    verdicts = judge.score(items)

Per rubric the items become rows (tree.py); the model's last hidden states go to osim_kernels.judge_score inside
GPTModel's forward, which multiplies only the label rows of the head. Under tensor parallelism every rank of the group
calls `score` with the same items and gets the same verdicts; data-parallel ranks judge items of their own.

Shape suffixes: I calls, S query rows, J dimensions, L labels of all dimensions, T tokens of a row, D hidden.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region

from osim_core.checkpoint.hf import SafetensorsWeights, load_weights
from osim_core.config import LayoutConfig, ModelConfig
from osim_core.corpus.tokenizer import load as load_tokenizer
from osim_core.judge.calibrate import Calibration
from osim_core.judge.identity import rubric_versions, weights_digest
from osim_core.judge.labels import judge_labels
from osim_core.judge.prompt import Call, JudgePrompt, calls
from osim_core.judge.reading import LOW_MASS, NON_FINITE, Reading, verdict
from osim_core.judge.rubric import JudgeItem, Rubric, Verdict, check_item
from osim_core.judge.tree import Tree, TreeRow, pack_trees
from osim_core.missing import Missing
from osim_core.model.build import build_model
from osim_core.model.hf_config import model_config_from_hf
from osim_core.model.packed_row import PackedRow
from osim_core.parallel.device import device
from osim_core.rollout.ledger import TOO_LONG
from osim_kernels import judge_score as scoring

REASONS = {scoring.LOW_MASS: LOW_MASS, scoring.NON_FINITE: NON_FINITE}


@dataclass(frozen=True)
class ScoreTargets:
    """What the end of the forward pass scores: query rows, int64 [I, S], on the device; labels; the least mass."""

    rows_IS: torch.Tensor
    labels: scoring.JudgeLabels
    min_mass: float


@torch.no_grad()
def label_scores(*, hidden_states, output_layer, output_weight, context: ScoreTargets, config, **_):
    """GPTModel's output processor: JudgeScores of the rows' last hidden states [T, 1, D]."""
    hidden = gather_from_sequence_parallel_region(hidden_states) if config.sequence_parallel else hidden_states
    head_VD = output_layer.weight if output_weight is None else output_weight
    group = parallel_state.get_tensor_model_parallel_group()
    return scoring.judge_score(
        hidden[:, 0][context.rows_IS],
        head_VD,
        context.labels,
        min_mass=context.min_mass,
        tensor_parallel_group=group,
        vocab_start=group.rank() * head_VD.shape[0],
    )


class InProcessJudge:
    """Scores with `chunk`, a GPTModel of osim_core.model.build, which it freezes.

    prompt        the judge's own tokenizer and chat format
    rubrics       those that items may name
    max_tokens    of a row; a call that is longer alone is Missing("too long")
    min_mass      a dimension whose labels are together less probable is Missing("low label mass")
    calibrations  rubric -> dimension -> Calibration
    weights       names the weights in `identity`

    `tokens` counts what the model has computed, `tokens_unshared` what one prompt per call and dimension would take.
    """

    def __init__(
        self,
        name: str,
        chunk: torch.nn.Module,
        model: ModelConfig,
        prompt: JudgePrompt,
        rubrics: Iterable[Rubric],
        *,
        weights: str,
        max_tokens: int = 8192,
        min_mass: float = 0.2,
        calibrations: Mapping[str, Mapping[str, Calibration]] | None = None,
    ) -> None:
        self.name = name
        self.rubrics = {rubric.id: rubric for rubric in rubrics}
        self.prompt, self.model, self.device = prompt, model, device()
        self.max_tokens, self.min_mass = max_tokens, min_mass
        self.labels = {
            rubric.id: judge_labels(rubric, prompt, (calibrations or {}).get(rubric.id, {}))
            for rubric in self.rubrics.values()
        }
        versions = rubric_versions(self.rubrics.values())
        self.identity = f"in-process {weights} {prompt.identity} rubrics {versions} mass {min_mass}"
        self.tokens = self.tokens_unshared = 0
        self._chunk = chunk.eval().requires_grad_(False)
        # sequence parallelism cuts a row evenly
        self._multiple = chunk.config.tensor_model_parallel_size if chunk.config.sequence_parallel else 1

    @classmethod
    def from_hf(
        cls,
        name: str,
        folder: str | Path,
        rubrics: Iterable[Rubric],
        layout: LayoutConfig,
        *,
        precision: str = "fp32",
        chat_format: str = "template",
        answer_prefix: str = "",
        **options,
    ) -> "InProcessJudge":
        """The judge of a Hugging Face folder, in the layout of the running job; `options` as of the class.

        Raises ValueError for pipeline or context parallelism, whose ranks see only a part of the tree or the model.
        """
        if layout.pipeline > 1 or layout.context > 1:
            raise ValueError(
                f"judge {name}: an in-process judge needs a layout without pipeline and context parallelism, got "
                f"pipeline {layout.pipeline} and context {layout.context}; name a vLLM or HTTP judge instead"
            )
        folder = Path(folder)
        model = model_config_from_hf(folder)
        chunks = build_model(model, layout, precision)
        load_weights(chunks, SafetensorsWeights(folder, model), model)
        prompt = JudgePrompt(load_tokenizer(folder), chat_format, answer_prefix)
        weights = f"{precision} {weights_digest(folder)}"
        return cls(name, chunks[0], model, prompt, rubrics, weights=weights, **options)

    @torch.no_grad()
    def score(self, items: Sequence[JudgeItem]) -> list[Verdict]:
        """One verdict per item, in order. Collective over the tensor-parallel group."""
        verdicts: list[Verdict | None] = [None] * len(items)
        by_rubric: dict[str, list[int]] = {}
        for index, item in enumerate(items):
            by_rubric.setdefault(check_item(item, self.rubrics).id, []).append(index)
        for name, indices in by_rubric.items():
            rubric = self.rubrics[name]
            asked = [(index, call) for index in indices for call in calls(rubric, items[index])]
            readings: dict[int, list[dict[str, Reading | Missing]]] = {index: [] for index in indices}
            for (index, _), reading in zip(asked, self._readings(rubric, [c for _, c in asked]), strict=True):
                readings[index].append(reading)
            for index, orders in readings.items():
                verdicts[index] = verdict(rubric, orders)
        return verdicts

    def _readings(self, rubric: Rubric, asked: Sequence[Call]) -> list[dict[str, Reading | Missing]]:
        """Dimension -> reading of every call."""
        labels = self.labels[rubric.id]
        # a path per query row: the prompt of its dimension, then one segment per token of the label so far
        paths = [
            [path[j] + tuple((token,) for token in prefix) for j, prefix in labels.contexts]
            for path in self.prompt.paths(rubric, asked)
        ]
        readings: list[dict[str, Reading | Missing]] = [{} for _ in asked]
        fitting = []
        for index, own in enumerate(paths):
            cost, longest = Tree().cost(own), max(sum(map(len, path)) for path in own)
            if cost <= self.max_tokens and longest <= self.model.max_position_embeddings:
                fitting.append(index)
                continue
            detail = (
                f"a prompt of {longest} tokens, {cost} with all questions; the judge reads "
                f"{self.model.max_position_embeddings} and {self.max_tokens}"
            )
            readings[index] = {dimension.name: Missing(TOO_LONG, detail) for dimension in rubric.dimensions}
        for row in pack_trees([paths[index] for index in fitting], self.max_tokens, self._multiple):
            scores = self._scores(row, labels)
            for place, member in enumerate(row.members):
                readings[fitting[member]] = _readings_of(rubric, labels, scores, place)
            self.tokens += row.tokens
            self.tokens_unshared += sum(
                len(part)
                for member in row.members
                for (_, prefix), path in zip(labels.contexts, paths[fitting[member]], strict=True)
                for part in path
                if not prefix
            )
        return readings

    def _scores(self, row: TreeRow, labels: scoring.JudgeLabels) -> dict[str, list]:
        """The figures of a row's calls, on the host."""
        batch = row.batch.to(self.device)
        scores = self._chunk(
            batch.tokens_T[None],
            batch.positions_T[None],
            None,
            packed_seq_params=PackedRow.of(row.batch, self.model, self.device),
            output_processor=label_scores,
            output_processor_context=ScoreTargets(row.rows_IS.to(self.device), labels, self.min_mass),
        )
        names = ("reason_IJ", "score_IJ", "label_logprob_IL", "entropy_IJ", "margin_IJ", "mass_IJ")
        return {name: getattr(scores, name).tolist() for name in names}


def _readings_of(
    rubric: Rubric, labels: scoring.JudgeLabels, scores: Mapping[str, list], place: int
) -> dict[str, Reading | Missing]:
    """Dimension -> reading of one call of a row."""
    found: dict[str, Reading | Missing] = {}
    for j, dimension in enumerate(rubric.dimensions):
        figures = {name: scores[f"{name}_IJ"][place][j] for name in ("entropy", "margin", "mass")}
        if reason := REASONS.get(scores["reason_IJ"][place][j]):
            found[dimension.name] = Missing(reason, f"{dimension.name}: label mass {figures['mass']:.3g}")
        else:
            logprobs = scores["label_logprob_IL"][place][labels.slices[j]]
            found[dimension.name] = Reading(scores["score_IJ"][place][j], tuple(logprobs), figures)
    return found
