"""Compile audit of packed_attention: every configuration a call may pick, and what --tune may time."""

import torch

from osim_kernels.packed_attention import Segments
from osim_kernels.packed_attention import triton as ours
from osim_kernels.proof import Case, Expect
from osim_kernels.proof.hopper import DEVICE

ROWS, HEADS, KV_HEADS = 4096, 8, 2
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def _operands(dtype, head_dim, window):
    segments = Segments.from_cu_seqlens(torch.tensor([0, 467, ROWS], dtype=torch.int32), window=window).to(DEVICE)
    tensors = (torch.empty(ROWS, heads, head_dim, dtype=dtype, device=DEVICE) for heads in (HEADS, KV_HEADS, KV_HEADS))
    return *tensors, segments


def _launch(dtype, head_dim, window):
    def launch():
        *tensors, segments = _operands(dtype, head_dim, window)
        out_THD = ours.packed_attention_triton(*(x.requires_grad_() for x in tensors), segments, 0.1)
        out_THD.sum().backward()

    return launch


def _candidate(dtype, head_dim, kernel, config):
    def launch():
        *tensors, segments = _operands(dtype, head_dim, None)
        if kernel == "forward":
            ours.launch_forward(*tensors, segments, 0.1, config)
            return
        rows = torch.empty(HEADS, ROWS, device=DEVICE)
        entry = ours.launch_query_gradient if kernel == "query_gradient" else ours.launch_key_gradient
        entry(*tensors, torch.empty_like(tensors[0]), rows, rows, segments, 0.1, config)

    return launch


# Not `wide`: besides TMA the product kernels load only scalars of the plan and one float a row, and the row sums store
# one; a test looks for the 128-bit accesses of the rest in the golden rows.
PRODUCT = Expect(wgmma=True, async_copy=True)
EXPECT = {
    "_forward_kernel": PRODUCT,
    "_row_sums_kernel": Expect(),
    "_query_gradient_kernel": PRODUCT,
    "_key_gradient_kernel": PRODUCT,
}


CASES = tuple(
    Case(
        name=f"{NAMES[dtype]} d{head_dim}{' window' if window else ''}",
        launch=_launch(dtype, head_dim, window),
        expect=EXPECT,
        slow=not (dtype == torch.bfloat16 and (head_dim == 128 or not window)),
    )
    for dtype in NAMES
    for itemsize, head_dim in ours.CONFIGS
    if itemsize == dtype.itemsize
    for window in (None, 1024)
) + tuple(
    Case(
        name=f"bf16 d{head_dim} {kernel} candidate {config.name}",
        launch=_candidate(torch.bfloat16, head_dim, kernel, config),
        expect={f"_{kernel}_kernel": PRODUCT},
        slow=True,
    )
    for (head_dim, kernel), configs in ours.CANDIDATES.items()
    for config in configs
)
