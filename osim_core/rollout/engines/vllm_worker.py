"""The process in which vLLM runs: `python -m osim_core.rollout.engines.vllm_worker FD`, started by vllm_engine.py.

A process of its own, because vLLM must meet neither the CPU stand-in for torch.cuda nor a trainer's process groups,
and because what is killed or runs out of memory here must not end the trainer. Requests and answers are pickled
messages with a length in front (multiprocessing's Connection) over the socket FD; weights come as files.

Every call into vLLM that osim_core makes is in this file; tests/rollout/test_engine_vllm_api.py holds them against the
signatures of the installed package. What only a GPU can run is marked so.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from osim_core.rollout.checksum import checksum
from osim_core.rollout.engine import Completion, Sampling
from osim_core.rollout.engines.refusals import check_checksum
from osim_core.rollout.engines.snapshot import read_config, read_snapshot

TRANSFER_BYTES = 1 << 30  # weights on their way to a GPU at a time


def arguments(folder: str, options, on_gpu: bool) -> dict:
    """Keyword arguments of vllm.LLM for an EngineOptions."""
    common = dict(
        model=folder,
        skip_tokenizer_init=True,  # tokens in, tokens out
        generation_config="vllm",  # nothing of the model's own sampling defaults
        logprobs_mode="processed_logprobs",  # of the distribution that is sampled: after temperature and top_p
        enable_prefix_caching=True,
        dtype=options.dtype,
        max_model_len=options.context,
        max_num_seqs=options.max_sequences,
        disable_log_stats=True,
        seed=options.seed,
    )
    if on_gpu:
        from vllm.config import WeightTransferConfig

        memory = dict(gpu_memory_utilization=options.gpu_memory, enable_sleep_mode=True)
        return common | memory | dict(weight_transfer_config=WeightTransferConfig(backend="ipc"))
    # A prompt that is prefilled in parts draws from its seeded generator in between and turns it back, which CPU
    # generators cannot: the engine would die of more prompts than fit one batch.
    return common | dict(
        enforce_eager=True, enable_chunked_prefill=False, max_num_batched_tokens=max(8192, options.context)
    )


def sampling_params(sampling: Sampling):
    from vllm import SamplingParams

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        stop_token_ids=list(sampling.stop_token_ids),
        seed=sampling.seed,
        ignore_eos=True,  # only what was asked for stops
        logprobs=0,  # of the sampled token alone
        detokenize=False,
    )


class Server:
    """One vLLM engine; a method per request."""

    def __init__(self, folder: str, version: int, options) -> None:
        from vllm import LLM

        self.on_gpu = torch.cuda.is_available()
        self.llm = LLM(**arguments(folder, options, self.on_gpu))
        if self.on_gpu:
            self.llm.init_weight_transfer_engine({"init_info": {"packed": False}})
        self.llm.update_weight_version(str(version))
        self.tied = read_config(Path(folder)).get("tie_word_embeddings", False)
        self.version, self.asleep, self.staged = version, False, None

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling]) -> list[Completion]:
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self.llm.generate(inputs, [sampling_params(one) for one in sampling], use_tqdm=False)
        return [self._completion(output.outputs[0]) for output in outputs]

    def _completion(self, output) -> Completion:
        tokens = tuple(output.token_ids)
        logprobs = tuple(place[token].logprob for token, place in zip(tokens, output.logprobs, strict=True))
        return Completion(tokens, logprobs, self.version, output.finish_reason)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        from vllm import SamplingParams

        wanted = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        inputs = [{"prompt_token_ids": list(sequence)} for sequence in sequences]
        outputs = self.llm.generate(inputs, wanted, use_tqdm=False)
        return [
            tuple(place[token].logprob for token, place in zip(sequence[1:], output.prompt_logprobs[1:], strict=True))
            for sequence, output in zip(sequences, outputs, strict=True)
        ]

    def next_logprobs(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]
    ) -> list[tuple[float, ...]]:
        from vllm import SamplingParams

        wanted = [SamplingParams(max_tokens=1, logprob_token_ids=list(ids), detokenize=False) for ids in tokens]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self.llm.generate(inputs, wanted, use_tqdm=False)
        return [
            tuple(output.outputs[0].logprobs[0][token].logprob for token in ids)
            for ids, output in zip(tokens, outputs, strict=True)
        ]

    def load(self, folder: str, version: int, expected: str) -> None:
        """Take over a snapshot; while asleep, at waking up. Raises ValueError if it is not what was sent."""
        check_checksum(version, checksum(read_snapshot(Path(folder))), expected)
        self.staged = (folder, version)
        if not self.asleep:
            self._apply()

    def _apply(self) -> None:
        folder, version = self.staged
        if self.on_gpu:
            self._transfer(Path(folder), version)
        else:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
            if self.tied:
                self.llm.apply_model(repack_head)
            self.llm.update_weight_version(str(version))
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache still holds keys of the old weights")
        self.version, self.staged = version, None

    def _transfer(self, folder: Path, version: int) -> None:
        """GPU only: vLLM's own weight transfer, over CUDA IPC from this process to its engine core's."""
        from torch.multiprocessing.reductions import reduce_tensor

        gpu = str(torch.cuda.get_device_properties(0).uuid)
        self.llm.start_weight_update()
        for part in batches(folder):
            info = {
                "names": [name for name, _ in part],
                "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in part],
                "shapes": [list(tensor.shape) for _, tensor in part],
                "ipc_handles": [{gpu: reduce_tensor(tensor)[1]} for _, tensor in part],
            }
            self.llm.update_weights({"update_info": info})
        self.llm.finish_weight_update(weight_version=str(version))
        torch.cuda.empty_cache()

    def sleep(self) -> None:
        """Give the GPU's memory back: weights and keys are dropped. Without a GPU there is nothing to give."""
        self.asleep = True
        if self.on_gpu:
            self.llm.sleep(level=2)

    def wake(self, folder: str, version: int) -> None:
        """Load the staged weights, or those of `folder` again, and go on."""
        self.asleep = False
        self.staged = self.staged or (folder, version)
        if self.on_gpu:
            self.llm.wake_up(tags=["weights"])
        self._apply()
        if self.on_gpu:
            self.llm.wake_up(tags=["kv_cache"])


def repack_head(model: torch.nn.Module) -> None:
    """CPU only: a tied head computes with a packed copy of the embedding, which vLLM's reload leaves as it was."""
    model.lm_head.quant_method.process_weights_after_loading(model.lm_head)


def batches(folder: Path, limit: int = TRANSFER_BYTES) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """GPU only: a snapshot's tensors on the device, about `limit` bytes at a time."""
    part: list[tuple[str, torch.Tensor]] = []
    for name, tensor in read_snapshot(folder, device="cuda"):
        part.append((name, tensor))
        if sum(t.nbytes for _, t in part) > limit:
            yield part
            part = []
    if part:
        yield part


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    scratch, *start = connection.recv()
    server = Server(*start)
    connection.send(os.getpid())
    while True:
        try:
            method, values = connection.recv()
        except EOFError:  # the trainer was killed: nobody else would remove its snapshots
            shutil.rmtree(scratch)
            return
        try:
            answer = (True, getattr(server, method)(*values))
        except ValueError as error:
            answer = (False, str(error))
        connection.send(answer)


if __name__ == "__main__":
    main()
