"""transformers as a rollout engine: the second implementation that vLLM and the trainer are compared with.

    engine = HfEngine(Path("models/tiny"))

In the caller's process, at most `batch` sequences at a time, padded on the left, keys and values cached. Plain enough
to be read as the definition of what an engine returns; for small models, and slower than vLLM (benchmarks/rollout.py).

Shape suffixes: B sequences, T tokens with padding, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from itertools import batched
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from osim_core.missing import Missing
from osim_core.rollout.checksum import checksum as checksum_of
from osim_core.rollout.engine import Completion, Sampling
from osim_core.rollout.engines.refusals import check_checksum, check_version, checked, fitting, too_long
from osim_core.rollout.engines.snapshot import tensor_shapes


class HfEngine:
    """The model of a Hugging Face folder, in fp32 unless `dtype` says otherwise.

    A completion is a function of prompt, seed and weights; its log-probs vary by rounding with the company it is in.
    """

    def __init__(
        self,
        folder: Path,
        context: int = 1024,
        batch: int = 64,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        version: int = 0,
    ) -> None:
        self.shapes, self.context, self.batch, self.version = tensor_shapes(folder), context, batch, version
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
        self.vocab_size, self.device = self.model.config.vocab_size, torch.device(device)
        self.unseeded = torch.Generator().manual_seed(0)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling]) -> list[Completion | Missing]:
        fits = fitting(prompts, self.vocab_size, self.context)
        jobs = [job for *job, fit in zip(prompts, sampling, fits, strict=True) if fit]
        done = iter([completion for part in batched(jobs, self.batch) for completion in self._complete(part)])
        return [next(done) if fit else too_long(self.context) for fit in fits]

    @torch.no_grad()
    def _complete(self, jobs: Sequence[tuple[Sequence[int], Sampling]]) -> list[Completion]:
        longest = max(len(prompt) for prompt, _ in jobs)
        pads = torch.tensor([longest - len(prompt) for prompt, _ in jobs], device=self.device)
        tokens_BT = torch.tensor([[0] * (longest - len(p)) + list(p) for p, _ in jobs], device=self.device)
        limits = [min(wanted.max_tokens, self.context - len(prompt)) for prompt, wanted in jobs]
        generators = [
            self.unseeded if wanted.seed is None else torch.Generator().manual_seed(wanted.seed) for _, wanted in jobs
        ]
        sampled: list[list[int]] = [[] for _ in jobs]
        logprobs: list[list[float]] = [[] for _ in jobs]
        live, cache = set(range(len(jobs))), None
        mask_BT = torch.arange(longest, device=self.device) >= pads[:, None]
        while live:
            steps = mask_BT.shape[1] - tokens_BT.shape[1]  # tokens that the cache holds
            positions_BT = torch.arange(steps, mask_BT.shape[1], device=self.device) - pads[:, None]
            output = self.model(
                input_ids=tokens_BT,
                attention_mask=mask_BT.long(),
                position_ids=positions_BT.clamp_min(0),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            logits_BV = output.logits[:, -1].float().cpu()
            following = [0] * len(jobs)
            for index in sorted(live):
                wanted = jobs[index][1]
                token, logprob = draw(logits_BV[index], wanted, generators[index])
                sampled[index].append(token)
                logprobs[index].append(logprob)
                following[index] = token
                if token in wanted.stop_token_ids or len(sampled[index]) == limits[index]:
                    live.discard(index)
            tokens_BT = torch.tensor(following, device=self.device)[:, None]
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(jobs), 1)], dim=1)
        return [
            Completion(tuple(s), tuple(lps), self.version, "stop" if s[-1] in wanted.stop_token_ids else "length")
            for s, lps, (_, wanted) in zip(sampled, logprobs, jobs, strict=True)
        ]

    def score(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...] | Missing]:
        fits = fitting(sequences, self.vocab_size, self.context)
        wanted = [sequence for sequence, fit in zip(sequences, fits, strict=True) if fit]
        done = iter([scores for part in batched(wanted, self.batch) for scores in self._scores(part)])
        return [next(done) if fit else too_long(self.context) for fit in fits]

    @torch.no_grad()
    def _scores(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        longest = max(map(len, sequences))
        # padding on the right: no token attends to what follows it
        tokens_BT = torch.tensor([[*s, *[0] * (longest - len(s))] for s in sequences], device=self.device)
        logprobs_BTV = self.model(input_ids=tokens_BT).logits[:, :-1].float().log_softmax(-1)
        taken_BT = logprobs_BTV.gather(2, tokens_BT[:, 1:, None])[..., 0]
        return [tuple(row[: len(s) - 1].tolist()) for row, s in zip(taken_BT, sequences, strict=True)]

    @torch.no_grad()
    def push(self, version: int, weights: Iterable[tuple[str, torch.Tensor]], checksum: str) -> None:
        check_version(self.version, version)
        # a copy of the model, since nothing may change before everything is checked
        state = {name: tensor.detach().clone() for name, tensor in checked(weights, self.shapes)}
        check_checksum(version, checksum_of(state.items()), checksum)
        self.model.load_state_dict(state, strict=False)  # a tied head is not among the names
        self.version = version

    def close(self) -> None:
        del self.model


def draw(logits_V: torch.Tensor, wanted: Sampling, generator: torch.Generator) -> tuple[int, float]:
    """A token and its log-prob, by inverting the distribution's sum at one uniform number. fp32 logits on the CPU."""
    if wanted.temperature == 0:
        token = int(logits_V.argmax())
        return token, logits_V.log_softmax(-1)[token].item()
    logprobs_V = (logits_V / wanted.temperature).log_softmax(-1)
    if wanted.top_p < 1:
        ordered_V, order = logprobs_V.sort(descending=True)
        before_V = ordered_V.exp().cumsum(-1) - ordered_V.exp()  # mass of the likelier tokens
        cut = order[before_V >= wanted.top_p]
        logprobs_V = logprobs_V.index_fill(0, cut, float("-inf")).log_softmax(-1)
    mass_V = logprobs_V.double().exp().cumsum(-1)
    uniform = torch.rand((), generator=generator, dtype=torch.float64) * mass_V[-1]
    token = int(torch.searchsorted(mass_V, uniform, right=True))
    return token, logprobs_V[token].item()
