"""Tasks on a real engine: what a ledger says about its tokens is what the model says about the ledger.

pytest tests/rollout/test_runner_engine.py
"""

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from osim_core.corpus import tokenizer as tokenizers
from osim_core.corpus.render import Renderer
from osim_core.rollout.engines.hf_engine import HfEngine
from osim_core.rollout.runner import EngineSpeaker, Start, run
from osim_core.soul.dyad import Dyad
from osim_core.soul.style import Style


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=4096,
        initializer_range=0.3,  # far from uniform, so that a token in the wrong place shows
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    renderer = Renderer(tokenizers.train(["abc"], folder, vocab_size=260))
    return EngineSpeaker(HfEngine(folder, context=4096), renderer, 4096)


def assert_logprobs_are_the_models(policy, trajectories) -> int:
    """Every sampled token's log-prob equals that of the whole ledger read at once; returns how many there were."""
    ledgers = [ledger for trajectory in trajectories for ledger in trajectory.ledgers.values()]
    count = 0
    for ledger, scores in zip(ledgers, policy.engine.score([ledger.tokens for ledger in ledgers]), strict=True):
        for place, own in enumerate(ledger.is_policy):
            if own:
                assert ledger.logprobs[place] == pytest.approx(scores[place - 1], abs=1e-3)
                count += 1
    return count


def test_single_turns(policy):
    starts = [Start(Style(), sample, r) for sample in Style().samples("validation")[:3] for r in range(2)]
    played = run(starts, {"policy": policy}, seed=1)
    assert assert_logprobs_are_the_models(policy, played) > 100
    assert all(0 <= Style().score(t.sample, t.outcome, {}) <= 1 for t in played)
    alone = run(starts[4:5], {"policy": policy}, seed=1)[0]
    assert alone.ledgers[""].tokens == played[4].ledgers[""].tokens


def test_self_play_of_many_turns_with_replies_cut_on_the_way(policy):
    task = Dyad(self_play=True)
    played = run([Start(task, sample) for sample in task.samples("test")[:1]], {"policy": policy}, seed=1)
    assert assert_logprobs_are_the_models(policy, played) > 300
    for trajectory in played:
        assert len(trajectory.ledgers) == 2 and trajectory.outcome.ended == "malformed"
        first = next(iter(trajectory.ledgers.values()))
        assert len([m for m in first.messages if m.role == "assistant"]) == 3
        closed = [t for t, own in zip(first.tokens, first.is_policy, strict=True) if own]
        assert len(closed) > 256  # some reply was cut and the dialogue went on
