"""Context parallelism over a packed row: rank r of n holds chunks r and 2n-1-r of the row's 2n equal chunks, which
balances causal work; documents need no padding because keys and values are gathered to the whole row.

Shape suffixes: T tokens of the row, L local tokens (T / n), G key-value heads, D head dim.
"""

import torch
import torch.distributed as dist


def local_chunks(length: int, rank: int, size: int) -> list[tuple[int, int]]:
    """Row positions [start, stop) that a context-parallel rank holds, in its local order."""
    if size == 1:
        return [(0, length)]
    assert length % (2 * size) == 0
    chunk = length // (2 * size)
    return [(index * chunk, (index + 1) * chunk) for index in (rank, 2 * size - 1 - rank)]


def local_slice(tensor_T: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """This rank's part of a tensor over the whole row (first dimension)."""
    chunks = local_chunks(tensor_T.shape[0], rank, size)
    return torch.cat([tensor_T[start:stop] for start, stop in chunks]) if size > 1 else tensor_T


def local_borders(cu_seqlens: torch.Tensor, length: int, rank: int, size: int) -> torch.Tensor:
    """Segment borders [S+1] of a row of `length` tokens -> [C, S+1]: the same borders within each of this rank's C
    chunks, counted in its local tokens. A segment without tokens in a chunk has equal borders there."""
    borders, offset = [], 0
    for start, stop in local_chunks(length, rank, size):
        borders.append(cu_seqlens.clamp(start, stop) - start + offset)
        offset += stop - start
    return torch.stack(borders)


class _GatherRow(torch.autograd.Function):
    """All ranks' local tokens in row order; backward sums the ranks' gradients of each token (reduce-scatter)."""

    @staticmethod
    def forward(ctx, local_LGD: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        ranked = local_LGD.new_empty((group.size() * local_LGD.shape[0], *local_LGD.shape[1:]))
        dist.all_gather_into_tensor(ranked, local_LGD.contiguous(), group=group)
        # chunk c of the row is the first half of rank c, or the second half of rank 2n-1-c
        ranked = ranked.unflatten(0, (group.size(), 2, -1))
        return torch.cat([ranked[:, 0], ranked[:, 1].flip(0)]).flatten(0, 1)

    @staticmethod
    def backward(ctx, grad_TGD: torch.Tensor):
        size = ctx.group.size()
        chunks = grad_TGD.unflatten(0, (2 * size, -1))
        ranked = torch.stack([chunks[:size], chunks[size:].flip(0)], dim=1).flatten(0, 2).contiguous()
        local = ranked.new_empty((ranked.shape[0] // size, *ranked.shape[1:]))
        dist.reduce_scatter_tensor(local, ranked, group=ctx.group)
        return local, None


def gather_row(local_LGD: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """[L, G, D] on each context-parallel rank -> the whole row [T, G, D] on all of them, differentiable."""
    return _GatherRow.apply(local_LGD, group) if group.size() > 1 else local_LGD
