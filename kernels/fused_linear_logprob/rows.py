"""Only rows of non-zero weight are computed: select them, compute, put the results back.

Shape suffixes: T tokens, N tokens of non-zero weight, D hidden.
"""

from collections.abc import Callable

import torch


def on_active_rows(
    compute: Callable,
    hidden_TD: torch.Tensor,
    targets_T: torch.Tensor,
    weights_T: torch.Tensor | None,
    active_rows: int | None,
    vocab_size: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """compute(hidden_ND, targets_N) -> (logprob_N, entropy_N or None), with zeros put where the weight is 0.

    Without `active_rows` a GPU is synchronised once, to learn N. With it nothing is: a wrong number turns every result
    into NaN on a GPU, which the non-finite guard stops. Raises ValueError for a wrong number or a target outside the
    vocabulary on the CPU.
    """
    if weights_T is None:
        _check_targets(targets_T, vocab_size)
        return compute(hidden_TD, targets_T)
    num_tokens = hidden_TD.shape[0]
    active_T = weights_T != 0
    right = None
    if active_rows is None:
        rows_N = active_T.nonzero()[:, 0]
    else:
        right = active_T.count_nonzero() == active_rows
        if right.device.type == "cpu" and not right:
            raise ValueError(f"active_rows is {active_rows}, but {int(active_T.count_nonzero())} weights are not 0")
        rows_N = active_T.nonzero_static(size=active_rows, fill_value=0)[:, 0]
    every_row = rows_N.numel() == num_tokens
    hidden_ND = hidden_TD if every_row else hidden_TD.index_select(0, rows_N)
    targets_N = targets_T if every_row else targets_T.index_select(0, rows_N)
    _check_targets(targets_N, vocab_size)

    def put_back(values_N):
        if values_N is None:
            return None
        if right is not None:
            values_N = values_N.where(right, torch.nan)
        return values_N if every_row else values_N.new_zeros(num_tokens).index_copy(0, rows_N, values_N)

    logprob_N, entropy_N = compute(hidden_ND, targets_N)
    return put_back(logprob_N), put_back(entropy_N)


def _check_targets(targets_N: torch.Tensor, vocab_size: int) -> None:
    if targets_N.device.type == "cpu" and targets_N.numel():  # on a GPU it would synchronise
        low, high = targets_N.aminmax()
        if low < 0 or high >= vocab_size:
            raise ValueError(f"target ids {int(low)}..{int(high)} leave the vocabulary of {vocab_size} tokens")
