"""Which sequence a token belongs to, and a sequence's mean log-ratio from its sum, for the sequence-level ratio.

Shape suffixes: T local tokens, S sequences, C chunks of the local row, 2 (sum of log-ratios, tokens).
"""

import torch
import torch.distributed as dist


def sequence_of_token(cu_seqlens_CS: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """int64 [T]: the sequence of each token; -1 outside every sequence. No host synchronisation."""
    rows_T = torch.arange(num_tokens, device=cu_seqlens_CS.device, dtype=cu_seqlens_CS.dtype)
    sequence_T = torch.full((num_tokens,), -1, dtype=torch.int64, device=cu_seqlens_CS.device)
    for borders in cu_seqlens_CS:
        owner_T = torch.searchsorted(borders, rows_T, right=True) - 1
        inside_T = (owner_T >= 0) & (owner_T < len(borders) - 1)
        sequence_T = torch.where(inside_T, owner_T, sequence_T)
    return sequence_T


def mean_log_ratio(sums_CS2: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """[S]: mean log-ratio of each sequence over all its tokens, wherever they lie; 0 for a sequence without tokens.

    Collective over the group, which holds the other chunks of the same sequences.
    """
    sums_S2 = sums_CS2.sum(dim=0)
    if group is not None:
        dist.all_reduce(sums_S2, group=group)
    return sums_S2[:, 0] / sums_S2[:, 1].clamp(min=1)
