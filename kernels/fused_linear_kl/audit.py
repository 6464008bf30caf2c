"""Compile audit of the KL kernels: every static tile, each divergence, with and without soft caps and odd widths."""

import torch

from osim_kernels.fused_linear_kl import triton as host
from osim_kernels.fused_linear_kl.divergence import Divergence, Scaling
from osim_kernels.proof import Case, Expect
from osim_kernels.proof.hopper import DEVICE

_ROWS, _VOCABULARY = 4096, 151936
_PLAIN = Scaling(1.0, None)
_CAPPED = Scaling(0.7, 30.0)


def _launch(kind, dtype, widths, *, scaling=_PLAIN, tile=None):
    def launch():
        student_ND, student_VD, teacher_NE, teacher_VE = (
            torch.empty(length, width, dtype=dtype, device=DEVICE, requires_grad=True)
            for width in widths
            for length in (_ROWS, _VOCABULARY)
        )
        chosen = host.tile_of
        if tile is not None:
            host.tile_of = lambda dtype: tile
        try:
            kl_N = host.fused_linear_kl_triton(
                student_ND,
                student_VD,
                teacher_NE,
                teacher_VE,
                real_rows=_VOCABULARY,
                group=None,
                divergence=Divergence(kind, 0.5),
                student=scaling,
                teacher=scaling,
            )
            torch.autograd.grad(kl_N.sum(), (student_ND, student_VD))
        finally:
            host.tile_of = chosen

    return launch


def _case(name, kind, dtype, *, slow=False, **options) -> Case:
    half = Expect(wgmma=True, async_copy=True)
    single = Expect(async_copy=True)
    kernels = ["_statistics_kernel", "_slope_kernel"] + ["_mixture_kernel"] * (kind == "jsd")
    expect = dict.fromkeys(kernels, single if dtype == torch.float32 else half)
    widths = options.pop("widths", (2048, 4096))
    return Case(name=name, launch=_launch(kind, dtype, widths, **options), expect=expect, slow=slow)


CASES = (
    *(_case(f"{kind} bf16", kind, torch.bfloat16) for kind in ("forward", "reverse", "jsd")),
    _case("reverse bf16 softcap", "reverse", torch.bfloat16, scaling=_CAPPED),
    _case("jsd fp16 softcap", "jsd", torch.float16, scaling=_CAPPED, slow=True),
    _case("jsd bf16 width 96", "jsd", torch.bfloat16, widths=(96, 96), slow=True),
    _case("forward fp32", "forward", torch.float32, slow=True),
    _case("jsd fp32", "jsd", torch.float32, slow=True),
    *(
        _case(
            f"jsd bf16 {t.rows}x{t.columns}x{t.depth} w{t.num_warps} s{t.num_stages}",
            "jsd",
            torch.bfloat16,
            tile=t,
            slow=True,
        )
        for t in host.CANDIDATES
    ),
)
