"""What a rank of the worker group runs in the tests of pushes: module-level, so spawned ranks can import it."""

import json
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from osim_core.config import LayoutConfig, LoraConfig, ModelConfig
from osim_core.model.hf_config import model_config_to_hf
from osim_core.rollout.checksum import checksum as checksum_of
from osim_core.rollout.engine import Sampling
from tests.checkpoint.cases import ranks_in

PROMPTS = ([*range(5, 25)], [40, 41, 7, 9, 9, 3, 200], [3], [*range(5, 25)])


class Recorder:
    """An engine that keeps what it is given, or refuses it after `take` tensors."""

    def __init__(self, take: int | None = None) -> None:
        self.version, self.take, self.weights = 0, take, {}

    def push(self, version, weights, checksum):
        for count, (name, tensor) in enumerate(weights, start=1):
            if count == self.take:
                raise ValueError(f"push: {name} is refused")
            assert name not in self.weights
            self.weights[name] = tensor.clone()
        assert checksum_of(self.weights.items()) == checksum
        self.version = version


def varied(model: ModelConfig, seed: int):
    """Random weights whose norms are not all one."""
    from osim_core.checkpoint.hf import RandomWeights

    class Varied(RandomWeights):
        def __call__(self, name: str) -> torch.Tensor:
            tensor = super().__call__(name)
            if tensor.dim() > 1:
                return tensor
            generator = torch.Generator().manual_seed(1000 * self.seed + len(name))
            return tensor.uniform_(0.5, 1.5, generator=generator)

    return Varied(model, seed)


def write_folder(folder: Path, model: ModelConfig, seed: int) -> None:
    """The model that `build` makes of this seed, as a Hugging Face folder."""
    weights = varied(model, seed)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(model_config_to_hf(model, "float32")))
    save_file({name: weights(name) for name in weights.shapes}, folder / "model.safetensors", metadata={"format": "pt"})


def build(model: ModelConfig, layout: LayoutConfig, seed: int, lora: LoraConfig | None = None) -> list:
    """The model in the layout with the weights of `seed`, adapters with both factors random."""
    from osim_core.checkpoint.hf import load_weights
    from osim_core.model.build import build_model
    from osim_core.model.lora import initialise

    chunks = build_model(model, layout, "fp32", lora=lora)
    load_weights(chunks, varied(model, seed), model)
    if lora:
        initialise(chunks, seed)
        for chunk in chunks:
            for name, parameter in chunk.named_parameters():
                if name.endswith("lora_B_OR"):
                    torch.nn.init.constant_(parameter, 0.01)  # the same for every layout
    return chunks


@torch.no_grad()
def trainer_logprobs(chunks: list, model: ModelConfig, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """log p of every token but the first, by the training model, all sequences in one packed row."""
    from osim_core.batch import PackedBatch
    from osim_core.loss.head import HeadTargets, token_logprobs
    from osim_core.model.packed_row import PackedRow

    lengths = [len(sequence) for sequence in sequences]
    row = PackedBatch(
        tokens_T=torch.cat([torch.tensor(sequence) for sequence in sequences]),
        labels_T=torch.cat([torch.tensor([*sequence[1:], 0]) for sequence in sequences]),
        positions_T=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        weights={},
        sources_S=torch.zeros(len(sequences), dtype=torch.int32),
        documents_S=torch.arange(len(sequences)),
    )
    logprobs_T = chunks[0](
        row.tokens_T[None],
        row.positions_T[None],
        None,
        packed_seq_params=PackedRow.of(row, model, torch.device("cpu")),
        output_processor=token_logprobs,
        output_processor_context=HeadTargets(row.labels_T, torch.ones(row.num_tokens), row.num_tokens),
    )
    return [part[:-1].tolist() for part in logprobs_T.split(lengths)]


def streamed_weights(
    model: ModelConfig,
    layout: LayoutConfig,
    seed: int,
    lora: LoraConfig | None = None,
    take: int | None = None,
    copies: int = 2,
):
    """(what this rank's engine was given, what it should be, the error of the push); engines on the first rank of each
    model copy that starts below rank `copies`."""
    with ranks_in(layout):
        from megatron.core import parallel_state

        from osim_core.model.lora import merged
        from osim_core.rollout.push import push

        chunks = build(model, layout, seed, lora)
        places = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_pipeline_model_parallel_rank()
        engine = Recorder(take) if places == (0, 0) and dist.get_rank() < copies else None
        error = None
        try:
            push(engine, chunks, model, version=1, value=merged)
        except ValueError as refused:
            error = str(refused)
        truth = varied(model, seed)
        return (engine and engine.weights), {name: truth(name) for name in truth.shapes}, error


@contextmanager
def engines_on_first_rank(folder: Path):
    """(vLLM, transformers) serving `folder` on rank 0, (None, None) elsewhere."""
    from osim_core.rollout.engines.hf_engine import HfEngine
    from osim_core.rollout.engines.vllm_engine import EngineOptions, VllmEngine

    if dist.get_rank() != 0:
        yield None, None
        return
    vllm, hf = VllmEngine(folder, EngineOptions(context=128, max_sequences=8)), HfEngine(folder, context=128)
    try:
        yield vllm, hf
    finally:
        vllm.close()


def parity(folder: Path, model: ModelConfig, stages: Sequence[tuple[int, LayoutConfig, LoraConfig | None]]) -> list:
    """For each (seed, layout, lora): push such a model into vLLM and transformers (seed 0 is the folder: not pushed),
    sample, and return [(vLLM's completions, its scores of them, transformers' scores, the trainer's)]."""
    results = []
    with ranks_in(LayoutConfig()):
        if dist.get_rank() == 0:
            write_folder(folder, model, seed=0)
    with engines_on_first_rank(folder) as (vllm, hf):
        version = 0
        for seed, layout, lora in stages:
            with ranks_in(layout):
                from osim_core.model.lora import merged
                from osim_core.rollout.push import push

                chunks = build(model, layout, seed, lora)
                if seed:
                    version += 1
                    for engine in (vllm, hf):
                        push(engine, chunks, model, version, merged)
                told = [None, None]
                if vllm:
                    wanted = [Sampling(max_tokens=24, temperature=1.0, seed=n) for n in range(len(PROMPTS))]
                    told[0] = vllm.generate(PROMPTS, wanted)
                dist.broadcast_object_list(told)
                sequences = [[*prompt, *done.tokens] for prompt, done in zip(PROMPTS, told[0], strict=True)]
                trained = trainer_logprobs(chunks, model, sequences)
                if vllm:
                    results.append((told[0], vllm.score(sequences), hf.score(sequences), trained))
    return results


def tiny(tied: bool) -> ModelConfig:
    """The recipe's byte-level model with weights large enough that its log-probs differ."""
    from configs import tiny_cpu

    return replace(tiny_cpu().model, tied_embeddings=tied, init_std=0.1)
