"""What every rollout engine must do, as functions that take one; test_engine_vllm.py and _hf.py call them."""

from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from osim_core.config import ModelConfig
from osim_core.missing import Missing
from osim_core.model.hf_config import model_config_to_hf
from osim_core.rollout.checksum import checksum
from osim_core.rollout.engine import Completion, Engine, Sampling
from osim_core.rollout.ledger import TOO_LONG

CONTEXT = 320
LONG = [(7 * n) % 250 for n in range(270)]  # two of vLLM's blocks of 128, so the prefix cache serves it
PROMPTS = ([*range(5, 25)], [40, 41, 7, 9, 9, 3, 200], [3], LONG)


def reference(model: ModelConfig, folder: Path) -> Qwen3ForCausalLM:
    """A random model, written to `folder` by transformers."""
    torch.manual_seed(3)
    truth = Qwen3ForCausalLM(Qwen3Config(**model_config_to_hf(model, "float32"))).eval()
    shake(truth)
    truth.save_pretrained(folder)
    return truth


@torch.no_grad()
def shake(truth: Qwen3ForCausalLM) -> None:
    """Other weights."""
    for parameter in truth.parameters():
        parameter.normal_(0, 0.12) if parameter.dim() > 1 else parameter.normal_(1, 0.1)


def weights_of(truth: Qwen3ForCausalLM) -> list[tuple[str, torch.Tensor]]:
    return [(name, parameter.detach().clone()) for name, parameter in truth.named_parameters()]


@torch.no_grad()
def logprobs(truth: Qwen3ForCausalLM, prompt, tokens, temperature: float = 1.0, top_p: float = 1.0) -> torch.Tensor:
    """Of `tokens` behind `prompt`, by definition, one position at a time."""
    logits = truth(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1] / (temperature or 1.0)
    rows = []
    for row in logits.softmax(-1):
        ordered, order = row.sort(descending=True)
        kept = order[ordered.cumsum(0) - ordered < top_p]
        rows.append(torch.zeros_like(row).index_copy(0, kept, row[kept] / row[kept].sum()).log())
    return torch.stack(rows).gather(1, torch.tensor(tokens)[:, None])[:, 0]


def close(found, truth: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(found), truth, rtol=0, atol=5e-5)


def completions_are_sampled_as_asked(engine: Engine, truth: Qwen3ForCausalLM) -> None:
    cases = [(p, t, top) for p in PROMPTS for t, top in ((1.0, 1.0), (0.6, 1.0), (1.3, 0.8), (0.0, 1.0))]
    wanted = [Sampling(max_tokens=9 + n, temperature=t, top_p=top, seed=n) for n, (_, t, top) in enumerate(cases)]
    for n, (done, (prompt, t, top)) in enumerate(
        zip(engine.generate([case[0] for case in cases], wanted), cases, strict=True)
    ):
        assert (len(done.tokens), done.finish, done.version) == (9 + n, "length", engine.version)
        close(done.logprobs, logprobs(truth, prompt, done.tokens, t, top if t else 1.0))
        if t == 0:
            best = truth(torch.tensor([[*prompt, *done.tokens]])).logits[0, len(prompt) - 1 : -1].argmax(-1)
            assert best.tolist() == list(done.tokens)


def frequencies_are_the_models(engine: Engine, truth: Qwen3ForCausalLM) -> None:
    """400 first tokens against the distribution they come from: each bin within 4.5 standard deviations."""
    drawn = engine.generate([PROMPTS[1]] * 400, [Sampling(max_tokens=1, seed=n) for n in range(400)])
    counts = torch.bincount(torch.tensor([done.tokens[0] for done in drawn]), minlength=truth.config.vocab_size)
    with torch.no_grad():
        expected = truth(torch.tensor([PROMPTS[1]])).logits[0, -1].softmax(-1) * 400
    likely = expected > 4
    assert likely.sum() > 5
    assert ((counts[likely] - expected[likely]).abs() < 4.5 * expected[likely].sqrt()).all()


def seeds_alone_decide(engine: Engine) -> None:
    """The same seed in another company gives the same tokens; another seed gives others."""
    wanted = [Sampling(max_tokens=12, seed=n) for n in range(len(PROMPTS))]
    together = engine.generate(PROMPTS, wanted)
    for prompt, one, done in zip(PROMPTS, wanted, together, strict=True):
        (alone,) = engine.generate([prompt], [one])
        assert alone.tokens == done.tokens
    twins = engine.generate([PROMPTS[0]] * 2, [Sampling(max_tokens=12, seed=n) for n in (1, 2)])
    assert twins[0].tokens != twins[1].tokens
    first, second = (engine.generate([PROMPTS[0]], [Sampling(max_tokens=12)])[0] for _ in range(2))
    assert first.tokens != second.tokens


def a_stop_token_is_the_last_one(engine: Engine, truth: Qwen3ForCausalLM) -> None:
    free = engine.generate([PROMPTS[0]], [Sampling(max_tokens=20, seed=5)])[0]
    stop = free.tokens[7]
    cut = free.tokens.index(stop) + 1
    (done,) = engine.generate([PROMPTS[0]], [Sampling(max_tokens=20, seed=5, stop_token_ids=(stop, 259))])
    assert (done.tokens, done.finish) == (free.tokens[:cut], "stop")
    close(done.logprobs, logprobs(truth, PROMPTS[0], done.tokens))
    (exact,) = engine.generate([PROMPTS[0]], [Sampling(max_tokens=cut, seed=5, stop_token_ids=(stop,))])
    assert (exact.tokens, exact.finish) == (free.tokens[:cut], "stop")


def scores_are_log_probs_of_every_token_but_the_first(engine: Engine, truth: Qwen3ForCausalLM) -> None:
    for _ in range(2):  # the second time with a warm prefix cache
        for sequence, scores in zip(PROMPTS, engine.score(PROMPTS), strict=True):
            assert len(scores) == len(sequence) - 1
            if scores:
                close(scores, logprobs(truth, sequence[:1], sequence[1:]))


def what_does_not_fit_is_missing_and_alone(engine: Engine) -> None:
    long = [5] * CONTEXT
    first, missing, last = engine.generate([PROMPTS[0], long, PROMPTS[1]], [Sampling(max_tokens=3, seed=1)] * 3)
    assert isinstance(missing, Missing) and missing.reason == TOO_LONG
    assert isinstance(first, Completion) and isinstance(last, Completion)
    assert first.tokens == engine.generate([PROMPTS[0]], [Sampling(max_tokens=3, seed=1)])[0].tokens
    assert [isinstance(x, Missing) for x in engine.score([long, PROMPTS[0]])] == [True, False]
    (cut,) = engine.generate([long[:-2]], [Sampling(max_tokens=9, seed=1)])
    assert (len(cut.tokens), cut.finish) == (2, "length")
    assert engine.generate([], []) == [] and engine.score([]) == []
    for bad in ([], [260], [-1]):
        with pytest.raises(ValueError, match="sequence 1 of 2: the model reads tokens 0 to 259"):
            engine.generate([PROMPTS[0], bad], [Sampling(max_tokens=3)] * 2)


def pushes_replace_the_weights_and_bad_ones_nothing(engine: Engine, truth: Qwen3ForCausalLM) -> None:
    start = engine.version
    greedy = [Sampling(max_tokens=8, temperature=0.0)] * len(PROMPTS)
    engine.generate(PROMPTS, greedy)  # fills the prefix cache with keys of the old weights
    torch.manual_seed(start + 100)
    shake(truth)
    weights = weights_of(truth)
    engine.push(start + 1, iter(weights), checksum(weights))
    assert engine.version == start + 1
    completions_are_sampled_as_asked(engine, truth)
    scores_are_log_probs_of_every_token_but_the_first(engine, truth)

    good = engine.generate(PROMPTS, greedy)
    other = [(name, tensor + 0.5) for name, tensor in weights]
    narrow = [(weights[0][0], weights[0][1][:, :-1]), *other[1:]]
    for version, pushed, announced, words in (
        (start, other, None, f"holds version {start + 1} and takes version {start + 2} next, not {start}"),
        (start + 1, other, None, f"takes version {start + 2} next, not {start + 1}"),
        (start + 3, other, None, f"takes version {start + 2} next, not {start + 3}"),
        (start + 2, other, checksum(weights), "announced was"),
        (start + 2, other[:-1], None, f"{other[-1][0]} did not come"),
        (start + 2, [*other, ("model.extra", other[0][1])], None, "has no tensor 'model.extra'"),
        (start + 2, [*other, other[0]], None, f"{other[0][0]} came twice"),
        (start + 2, narrow, None, f"{other[0][0]} has shape"),
    ):
        with pytest.raises(ValueError, match=words):
            engine.push(version, iter(pushed), announced or checksum(pushed))
        assert engine.version == start + 1
    assert engine.generate(PROMPTS, greedy) == good
