"""Contexts from vLLM in this process: batches on the GPUs of this machine, answers held to the JSON schema.

vLLM is imported when a writer is made, and only then. Checked here against a stand-in with vLLM 0.32's interface, not
run on a GPU.
"""

from collections.abc import Sequence
from typing import Any

from osim_core.corpus.context import prompt
from osim_core.corpus.context.endpoint import RETRY_TEMPERATURE
from osim_core.corpus.context.schema import JSON_SCHEMA, SchemaError, parse
from osim_core.corpus.context.writers import Draft, Request


class VllmWriter:
    """Writes with `vllm.LLM(model, **engine)`.

    engine: passed on as it is, such as tensor_parallel_size or max_model_len; a prompt has up to 14,000 characters, so
    max_model_len must hold those and `max_tokens`. Raises ValueError if vLLM is not installed.
    """

    stated = False

    def __init__(self, model: str, *, max_tokens: int = 1024, attempts: int = 3, **engine: Any) -> None:
        try:
            from vllm import LLM, SamplingParams
            from vllm.sampling_params import StructuredOutputsParams
        except ImportError as error:
            raise ValueError(
                "context writer vllm: vllm is not installed; run `pip install osim-core[gpu]` on a machine with GPUs, "
                "or name an endpoint instead"
            ) from error
        self.identity = f"vllm {model} prompt {prompt.VERSION} tokens {max_tokens}"
        self.attempts = attempts
        self._llm = LLM(model=model, **engine)

        def sampling(request: Request) -> SamplingParams:
            return SamplingParams(
                temperature=RETRY_TEMPERATURE if request.attempt else 0.0,
                seed=request.attempt,
                max_tokens=max_tokens,
                structured_outputs=StructuredOutputsParams(json=JSON_SCHEMA),
            )

        self._sampling = sampling

    def write(self, requests: Sequence[Request]) -> list[Draft]:
        """One draft per request, in order; vLLM batches them as its memory allows."""
        outputs = self._llm.chat(
            [prompt.messages(request) for request in requests],
            sampling_params=[self._sampling(request) for request in requests],
            use_tqdm=False,
            chat_template_kwargs={"enable_thinking": False},  # templates that know no such switch ignore it
        )
        return [_draft(output) for output in outputs]


def _draft(output: Any) -> Draft:
    tokens = len(output.prompt_token_ids), len(output.outputs[0].token_ids)
    try:
        return Draft(parse(output.outputs[0].text), "", "", *tokens)
    except SchemaError as error:
        return Draft(None, "schema", str(error), *tokens)
