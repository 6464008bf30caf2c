"""Compile audit of fused_linear_logprob: every configuration and variant a call may pick, and what --tune may time."""

import torch

from osim_kernels.fused_linear_logprob import triton as ours
from osim_kernels.proof import Case, Expect
from osim_kernels.proof.hopper import DEVICE

ROWS, HIDDEN, VOCAB = 4096, 4096, 32768
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def _launch(dtype, **options):
    def launch():
        hidden_TD = torch.empty(ROWS, HIDDEN, dtype=dtype, device=DEVICE, requires_grad=True)
        weight_VD = torch.empty(VOCAB, HIDDEN, dtype=dtype, device=DEVICE, requires_grad=True)
        targets_T = torch.empty(ROWS, dtype=torch.int64, device=DEVICE)
        logprob_T, entropy_T = ours.fused_linear_logprob_triton(
            hidden_TD, weight_VD, targets_T, vocab_size=VOCAB, **options
        )
        (logprob_T.sum() if entropy_T is None else logprob_T.sum() + entropy_T.sum()).backward()

    return launch


def _candidate(dtype, config):
    def launch():
        hidden_ND = torch.empty(ROWS, HIDDEN, dtype=dtype, device=DEVICE)
        head_VD = torch.empty(VOCAB, HIDDEN, dtype=dtype, device=DEVICE)
        targets_N = torch.empty(ROWS, dtype=torch.int64, device=DEVICE)
        rows = [targets_N, *torch.empty(5, ROWS, device=DEVICE)]
        dlogits_RC = torch.empty(ROWS, 8192, dtype=dtype, device=DEVICE)
        ours.local_statistics(hidden_ND, head_VD, targets_N, 1.0, None, True, config)
        ours.launch_dlogits(dlogits_RC, hidden_ND, head_VD[:8192], 0, rows, 1.0, None, config)

    return launch


def _expect(dtype):
    product = Expect(wgmma=dtype != torch.float32, async_copy=True)  # fp32 multiplies in FFMA: no tensor core is exact
    return {"_statistics_kernel": product, "_dlogits_kernel": product}


VARIANTS = {
    "": {},
    " entropy": {"with_entropy": True},
    " softcap": {"logit_softcap": 30.0},
    " softcap entropy": {"logit_softcap": 30.0, "with_entropy": True, "temperature": 0.7},
}

CASES = tuple(
    Case(
        name=f"{NAMES[dtype]}{name}",
        launch=_launch(dtype, **options),
        expect=_expect(dtype),
        slow=dtype == torch.float16 or (dtype == torch.float32 and name != " softcap entropy"),
    )
    for dtype in NAMES
    for name, options in VARIANTS.items()
) + tuple(
    Case(
        name=f"{NAMES[dtype]} candidate {config.name}",
        launch=_candidate(dtype, config),
        expect=_expect(dtype),
        slow=True,
    )
    for dtype in (torch.bfloat16, torch.float32)
    for config in ours.CANDIDATES[dtype.itemsize]
)
