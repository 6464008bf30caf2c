"""Softmax statistics of disjoint parts of the vocabulary, and how they become those of the whole.

A row's statistics are four numbers: maximum, sum of exp(z - maximum), moment = sum of exp(z - maximum) (z - maximum),
and its target's logit (-inf where the part does not hold it). Milakov and Gimelshein 2018 give the first two; the
moment, for the entropy, follows alike. Shape suffixes: N tokens, P parts (tiles of one rank, or ranks).
"""

import torch
import torch.distributed as dist

LOWEST = -1e30  # below any logit, yet finite: (LOWEST - maximum) * 0 must be 0 and not NaN


def nothing_seen(num_rows: int, like: torch.Tensor) -> torch.Tensor:
    """[4, N] statistics of an empty part, in fp32 (fp64 for an fp64 `like`)."""
    wide = torch.promote_types(like.dtype, torch.float32)
    statistics_4N = torch.zeros(4, num_rows, dtype=wide, device=like.device)
    statistics_4N[0].fill_(LOWEST)
    statistics_4N[3].fill_(-torch.inf)
    return statistics_4N


def merged(parts_P4N: torch.Tensor) -> torch.Tensor:
    """[4, N] statistics of the union of disjoint parts."""
    maximum_PN, sum_PN, moment_PN, target_PN = parts_P4N.unbind(1)
    maximum_N = maximum_PN.amax(dim=0)
    shift_PN = maximum_PN - maximum_N
    decay_PN = shift_PN.exp()
    moment_N = (decay_PN * (moment_PN + shift_PN * sum_PN)).sum(dim=0)
    # only the owner's target is finite; a target that nobody owns stays -inf and stops the run as non-finite
    return torch.stack((maximum_N, (decay_PN * sum_PN).sum(dim=0), moment_N, target_PN.amax(dim=0)))


def over_ranks(mine_4N: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Each rank's statistics as those of the whole vocabulary, in one all-gather; every rank gets equal bits."""
    everyone = mine_4N.new_empty(dist.get_world_size(group) * 4, mine_4N.shape[1])  # gloo wants the ranks' rows stacked
    dist.all_gather_into_tensor(everyone, mine_4N.contiguous(), group=group)
    return merged(everyone.unflatten(0, (-1, 4)))
