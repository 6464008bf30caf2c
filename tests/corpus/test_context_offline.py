"""The vLLM writer against a stand-in with vLLM's names and signatures: what it asks for, and what it makes of answers.

This does not show that vLLM itself accepts the calls; that needs a GPU.
"""

import builtins
import json
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest

from osim_core.corpus.context import prompt
from osim_core.corpus.context.offline import VllmWriter
from osim_core.corpus.context.schema import JSON_SCHEMA, SocialContext
from osim_core.corpus.context.writers import Request
from osim_core.corpus.sources.dialogue import Dialogue, Turn

GOOD = {"persona": "You are a cook.", "relationship": "Friends.", "scene": "A chat.", "goal": "To get help."}


@dataclass(kw_only=True)
class StructuredOutputsParams:
    json: dict | None = None


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float
    seed: int
    max_tokens: int
    structured_outputs: StructuredOutputsParams


class LLM:
    made, asked = [], []
    answers = ()

    def __init__(self, model, **engine):
        LLM.made.append((model, engine))

    def chat(self, messages, sampling_params, use_tqdm=True, chat_template_kwargs=None):
        LLM.asked.append((messages, sampling_params, chat_template_kwargs))
        return [
            SimpleNamespace(prompt_token_ids=[0] * 9, outputs=[SimpleNamespace(text=text, token_ids=[0] * 4)])
            for text in LLM.answers[: len(messages)]
        ]


@pytest.fixture
def vllm(monkeypatch):
    module, sampling = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    sampling.StructuredOutputsParams = StructuredOutputsParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling)
    LLM.made, LLM.asked = [], []


def test_one_call_per_batch_with_schema_and_switched_off_thinking(vllm):
    LLM.answers = (json.dumps(GOOD), "no")
    writer = VllmWriter("org/model", max_tokens=300, max_model_len=16384)
    first = Request(Dialogue("1", "s", (Turn("a", "x"), Turn("b", "y")), ("b",)), "b")
    second = Request(first.dialogue, "b", attempt=2, rejected="it leaks")
    good, bad = writer.write([first, second])
    assert LLM.made == [("org/model", {"max_model_len": 16384})]
    ((messages, sampling, template),) = LLM.asked
    assert messages == [prompt.messages(first), prompt.messages(second)] and template == {"enable_thinking": False}
    assert [(s.temperature > 0, s.seed, s.max_tokens) for s in sampling] == [(False, 0, 300), (True, 2, 300)]
    assert all(s.structured_outputs.json == JSON_SCHEMA for s in sampling)
    assert good.context == SocialContext(**GOOD) and (good.prompt_tokens, good.completion_tokens) == (9, 4)
    assert bad.fault == "schema" and bad.prompt_tokens == 9


def test_without_vllm_it_is_one_clear_line(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "vllm":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"context writer vllm: vllm is not installed"):
        VllmWriter("org/model")
