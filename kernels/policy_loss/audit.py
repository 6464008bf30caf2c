"""Compile audit of the policy loss: every surrogate, ratio and correction, and the candidate blocks."""

from dataclasses import replace

import torch

from osim_kernels.policy_loss import CISPO, DAPO, GRPO, GSPO
from osim_kernels.policy_loss import triton as host
from osim_kernels.proof import Case, Expect
from osim_kernels.proof.hopper import DEVICE

_TOKENS, _SEQUENCES = 16384, 64
_CORRECTED = replace(DAPO, sampler_cap=2.0)


def _launch(config, block=None, num_warps=None, weights=torch.float32):
    def launch():
        logprob_T, old_T, sampler_T, advantage_T, weights_T = (torch.empty(_TOKENS, device=DEVICE) for _ in range(5))
        weights_T = weights_T.to(weights)
        sampler_T = None if config.sampler_cap is None else sampler_T
        borders = torch.empty(1, _SEQUENCES + 1, dtype=torch.int32, device=DEVICE)
        chosen = host.BLOCK, host.NUM_WARPS
        if block is not None:
            host.BLOCK, host.NUM_WARPS = block, num_warps
        try:
            host.policy_loss_triton(
                logprob_T.requires_grad_(), old_T, sampler_T, advantage_T, weights_T, borders, None, config
            )
        finally:
            host.BLOCK, host.NUM_WARPS = chosen

    return launch


def _case(name, config, slow=False, **variant) -> Case:
    expect = {"_token_kernel": Expect(wide=config.ratio == "token")}
    if config.ratio == "sequence":
        expect["_sequence_kernel"] = Expect()  # sequences start anywhere, so its loads cannot be aligned
    return Case(name=name, launch=_launch(config, **variant), expect=expect, slow=slow)


CASES = (
    _case("clip", GRPO),
    _case("clip, sampler", _CORRECTED),
    _case("clip, sampler, bool weights", _CORRECTED, weights=torch.bool),
    _case("cispo, sampler", replace(CISPO, sampler_cap=2.0)),
    _case("sequence", GSPO),
    _case("sequence, sampler", replace(GSPO, sampler_cap=2.0)),
    *(
        _case(
            f"clip, sampler, block {block} w{warps}",
            replace(DAPO, sampler_cap=2.0),
            slow=True,
            block=block,
            num_warps=warps,
        )
        for block, warps in host.CANDIDATES
    ),
)
