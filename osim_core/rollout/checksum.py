"""A checksum of named tensors that trainer and engine compute alike: on any device, in any order, dtype by dtype.

    checksum([("model.norm.weight", norm), ...])  ->  "3f9a..."

A tensor's sum is s = sum_i bits_i (2 i + 1) mod 2^64 over the raw bits of its elements: one changed element, or two
that changed places, always change it, because 2 i + 1 is odd and the bits are at most 32 wide. The checksum is the
sum mod 2^64 of the tensors' BLAKE2b-64(name, dtype, shape, s). It guards against mistakes, not against attackers.
"""

import hashlib
from collections.abc import Iterable

import torch

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
BLOCK = 1 << 20  # elements at a time, so that their 64-bit copies stay small


@torch.no_grad()
def _weighted_bits(tensor: torch.Tensor) -> int:
    bits = tensor.detach().contiguous().flatten().view(INTEGERS[tensor.element_size()])
    odd = 2 * torch.arange(min(bits.numel(), BLOCK), device=bits.device) + 1
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, bits.numel(), BLOCK):
        block = bits[start : start + BLOCK].long()
        total += (block * (odd[: block.numel()] + 2 * start)).sum()  # int64 arithmetic is modulo 2^64
    return int(total)


def checksum(weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """16 hexadecimal digits."""
    total = 0
    for name, tensor in weights:
        content = f"{name} {tensor.dtype} {tuple(tensor.shape)} {_weighted_bits(tensor)}"
        total += int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little")
    return f"{total % 2**64:016x}"
