"""Compile audit of the KL kernels: every static configuration, divergence and soft cap, and what --tune may time."""

import torch

from osim_kernels.fused_linear_kl import top_k_triton
from osim_kernels.fused_linear_kl import triton as ours
from osim_kernels.fused_linear_kl.divergence import Divergence, Scaling
from osim_kernels.proof import Case, Expect
from osim_kernels.proof.hopper import DEVICE

ROWS, STUDENT, TEACHER, VOCABULARY, STORED = 4096, 2048, 4096, 32768, 64
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
PLAIN, CAPPED = Scaling(1.0, None), Scaling(0.7, 30.0)


def _launch(dtype, kind, student, teacher, configs=None):
    def launch():
        operands = (
            torch.empty(length, size, dtype=dtype, device=DEVICE, requires_grad=True)
            for size in (STUDENT, TEACHER)
            for length in (ROWS, VOCABULARY)
        )
        shipped = dict(ours.CONFIGS)
        ours.CONFIGS.update(configs or {})
        try:
            kl_N = ours.fused_linear_kl_triton(
                *operands,
                real_rows=VOCABULARY,
                group=None,
                divergence=Divergence(kind, 0.5),
                student=student,
                teacher=teacher,
            )
            kl_N.sum().backward()
        finally:
            ours.CONFIGS.update(shipped)

    return launch


def _case(dtype, kind, note="", *, student=PLAIN, teacher=PLAIN, slow=False, configs=None) -> Case:
    kernels = ("_statistics_kernel", "_dlogits_kernel") + ("_mixture_kernel",) * (kind == "jsd")
    product = Expect(wgmma=dtype != torch.float32, async_copy=True)  # fp32 multiplies in FFMA: no tensor core is exact
    return Case(
        name=f"{NAMES[dtype]} {kind}{note}",
        launch=_launch(dtype, kind, student, teacher, configs),
        expect=dict.fromkeys(kernels, product),
        slow=slow,
    )


def _top_k_case(dtype, student=PLAIN, *, slow=False) -> Case:
    def launch():
        hidden_ND, head_VD = (
            torch.empty(length, STUDENT, dtype=dtype, device=DEVICE, requires_grad=True)
            for length in (ROWS, VOCABULARY)
        )
        ids_NK = torch.empty(ROWS, STORED, dtype=torch.int64, device=DEVICE)
        logprobs_NL = top_k_triton.bucket_logprobs_triton(
            hidden_ND, head_VD, ids_NK, real_rows=VOCABULARY, group=None, student=student
        )
        logprobs_NL.sum().backward()

    product = Expect(wgmma=dtype != torch.float32, async_copy=True)
    return Case(
        name=f"{NAMES[dtype]} top-k{'' if student is PLAIN else ' softcap'}",
        launch=launch,
        # the ids' entries lie scattered over their rows: no access of _place_kernel can be wide
        expect={"_buckets_kernel": product, "_tail_dlogits_kernel": product, "_place_kernel": Expect()},
        slow=slow,
    )


KINDS = ("forward", "reverse", "jsd")
CASES = (
    *(_case(dtype, kind, slow=dtype == torch.float16) for dtype in NAMES for kind in KINDS),
    _case(torch.bfloat16, "jsd", " softcaps", student=CAPPED, teacher=CAPPED),
    *(_top_k_case(dtype, slow=dtype == torch.float16) for dtype in NAMES),
    _top_k_case(torch.bfloat16, CAPPED),
    *(_top_k_case(dtype, CAPPED, slow=True) for dtype in NAMES if dtype != torch.bfloat16),
    *(
        _case(dtype, kind, " softcaps", student=CAPPED, teacher=CAPPED, slow=True)
        for dtype in NAMES
        for kind in KINDS
        if (dtype, kind) != (torch.bfloat16, "jsd")
    ),
    *(_case(torch.bfloat16, kind, " student softcap", student=CAPPED, slow=True) for kind in KINDS),
    *(_case(torch.bfloat16, kind, " teacher softcap", teacher=CAPPED, slow=True) for kind in KINDS),
    *(
        _case(
            dtype,
            "jsd",
            f" candidate {'narrow' if key[1] else 'wide'} {config.name}",
            student=cap,
            teacher=cap,
            configs={key: config},
            slow=True,
        )
        for key, configs in ours.CANDIDATES.items()
        for config in configs
        for dtype, cap in ((torch.float32 if key[0] == 4 else torch.bfloat16, CAPPED if key[1] else PLAIN),)
    ),
)
