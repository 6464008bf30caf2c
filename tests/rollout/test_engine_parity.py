"""vLLM, transformers and the Megatron trainer give a token the same log-prob, before and after pushes, in any layout.

One vLLM process serves the whole file, on rank 0 of a group of two; it is pushed to by TP=1 and TP=2 and with adapters.
"""

from pathlib import Path

import pytest
import torch

from osim_core.config import LayoutConfig, LoraConfig
from osim_core.missing import Missing
from osim_core.model.packaged import unpack_smollm2
from osim_core.rollout.checksum import checksum
from osim_core.rollout.engine import Sampling
from osim_core.rollout.engines.hf_engine import HfEngine
from osim_core.rollout.engines.snapshot import read_snapshot
from osim_core.rollout.engines.vllm_engine import EngineOptions, VllmEngine
from tests.rollout.push_cases import PROMPTS, parity, tiny

TP2 = LayoutConfig(tensor=2, sequence_parallel=True)
STAGES = (  # (seed of the weights; 0 is the engines' own, layout, adapters)
    (0, LayoutConfig(), None),
    (0, TP2, None),
    (1, LayoutConfig(), None),
    (2, TP2, None),
    (3, TP2, LoraConfig(rank=4, alpha=8.0)),
)


def largest_difference(first, second) -> float:
    return max((torch.tensor(a) - torch.tensor(b)).abs().max().item() for a, b in zip(first, second, strict=True) if a)


def check(workers, tmp_path, tied: bool, stages) -> None:
    results = workers(2).run(parity, folder=tmp_path / "model", model=tiny(tied), stages=stages)[0]
    assert [done[0].version for done, *_ in results] == torch.tensor([s[0] > 0 for s in stages]).cumsum(0).tolist()
    for completions, by_vllm, by_hf, by_trainer in results:
        assert not any(isinstance(x, Missing) for x in [*completions, *by_vllm, *by_hf])
        sampled = [one.logprobs for one in completions]
        replies = [row[len(prompt) - 1 :] for row, prompt in zip(by_trainer, PROMPTS, strict=True)]
        assert all(len(one.tokens) == 24 for one in completions)
        for theirs, ours in ((sampled, replies), (by_vllm, by_trainer), (by_hf, by_trainer)):
            assert largest_difference(theirs, ours) < 1e-4, largest_difference(theirs, ours)
    # a push changed something, so equality after it says something
    before, after = results[1][0][0].tokens, results[2][0][0].tokens
    assert before != after


def test_logprobs_agree_before_and_after_pushes_from_tp1_tp2_and_adapters(workers, tmp_path):
    check(workers, tmp_path, False, STAGES)


@pytest.mark.slow
def test_logprobs_agree_with_tied_embeddings(workers, tmp_path):
    check(workers, tmp_path, True, STAGES)


@pytest.mark.slow
def test_smollm2_serves_in_both_engines_before_and_after_a_push():
    folder = unpack_smollm2(Path("data"))
    hf, vllm = HfEngine(folder, context=128), VllmEngine(folder, EngineOptions(context=128, max_sequences=4))
    wanted = [Sampling(max_tokens=32, seed=n) for n in range(len(PROMPTS))]
    try:
        for version in (0, 1):
            if version:
                weights = {name: tensor * 1.02 for name, tensor in read_snapshot(folder)}
                for engine in (hf, vllm):
                    engine.push(version, weights.items(), checksum(weights.items()))
            completions = vllm.generate(PROMPTS, wanted)
            sequences = [[*prompt, *one.tokens] for prompt, one in zip(PROMPTS, completions, strict=True)]
            by_hf = hf.score(sequences)
            replies = [row[len(prompt) - 1 :] for row, prompt in zip(by_hf, PROMPTS, strict=True)]
            assert {one.version for one in completions} == {version}
            assert largest_difference([one.logprobs for one in completions], replies) < 1e-3
            assert largest_difference(vllm.score(sequences), by_hf) < 1e-3
    finally:
        vllm.close()
