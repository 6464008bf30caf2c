"""What every engine refuses, each with one clear line: sequences, versions, tensors and checksums that do not fit."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from osim_core.missing import Missing
from osim_core.rollout.ledger import TOO_LONG


def fitting(sequences: Sequence[Sequence[int]], vocab_size: int, context: int) -> list[bool]:
    """Which sequences leave room for a token of reply in `context`.

    Raises ValueError for one that is empty or holds what is no token of the model.
    """
    for index, sequence in enumerate(sequences):
        if not len(sequence) or min(sequence) < 0 or max(sequence) >= vocab_size:
            raise ValueError(
                f"sequence {index} of {len(sequences)}: the model reads tokens 0 to {vocab_size - 1}, at least one"
            )
    return [len(sequence) < context for sequence in sequences]


def too_long(context: int) -> Missing:
    """In place of an answer to a sequence that does not fit."""
    return Missing(TOO_LONG, f"the engine's context holds {context} tokens, a reply included")


def check_version(held: int, pushed: int) -> None:
    """Raises ValueError unless `pushed` comes right after `held`: a stale push, or one that was left out, is a bug."""
    if pushed != held + 1:
        raise ValueError(f"push: the engine holds version {held} and takes version {held + 1} next, not {pushed}")


def check_checksum(version: int, found: str, announced: str) -> None:
    """Raises ValueError unless they are equal."""
    if found != announced:
        raise ValueError(f"push: version {version} arrived with checksum {found}, announced was {announced}")


def checked(
    weights: Iterable[tuple[str, torch.Tensor]], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The same tensors, each of which must be one of `shapes`, and all of them once. Raises ValueError."""
    seen: set[str] = set()
    for name, tensor in weights:
        if name not in shapes:
            raise ValueError(f"push: the engine's model has no tensor {name!r}")
        if name in seen:
            raise ValueError(f"push: {name} came twice")
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(f"push: {name} has shape {tuple(tensor.shape)}, the engine's model has {shapes[name]}")
        seen.add(name)
        yield name, tensor
    absent = [name for name in shapes if name not in seen]
    if absent:
        raise ValueError(f"push: {absent[0]} did not come (and {len(absent) - 1} more)")
