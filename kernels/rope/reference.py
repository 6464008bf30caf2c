"""The truth: rotate the two halves of each head in the tables' precision, then round to the input's dtype."""

import torch


def rope_reference(query_THD, key_TGD, cos_TD, sin_TD):
    return _rotate(query_THD, cos_TD, sin_TD), _rotate(key_TGD, cos_TD, sin_TD)


def _rotate(x_THD, cos_TD, sin_TD):
    half = x_THD.shape[-1] // 2
    cos, sin = cos_TD[:, None, :half], sin_TD[:, None, :half]
    wide_THD = x_THD.to(cos_TD.dtype)  # once, so that the gradient too is summed wide and rounded once
    first, second = wide_THD[..., :half], wide_THD[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_THD.dtype)
