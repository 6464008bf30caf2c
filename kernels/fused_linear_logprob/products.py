"""Pieces of the tiled computations in plain PyTorch: spans, products with fp32 accumulation and results, logits.

Shape suffixes: D hidden, B x C one tile of logits.
"""

from collections.abc import Iterator

import torch


def spans(length: int, chunk: int) -> Iterator[slice]:
    """[0, length) in slices of at most `chunk`."""
    return (slice(start, min(start + chunk, length)) for start in range(0, length, chunk))


def operand(x: torch.Tensor) -> torch.Tensor:
    """x as the device multiplies it: the CPU would round its output to 16 bits, so it gets fp32."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.device.type == "cpu" else x


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right of two `operand`s, in fp32 (fp64 for fp64)."""
    if left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right)


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total += left @ right."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(product(left, right))


def logits(hidden_BD, weight_CD, temperature: float, softcap: float | None) -> torch.Tensor:
    """One tile, soft-capped and then divided by the temperature."""
    tile_BC = product(hidden_BD, weight_CD.T)
    if softcap is not None:
        tile_BC.div_(softcap).tanh_().mul_(softcap)
    return tile_BC if temperature == 1.0 else tile_BC.div_(temperature)
