"""Registry: which implementation of an operation runs for this device and dtype, and why.

Every op package declares its implementations in order of preference, each with a predicate that answers why it
cannot run a given case (or None when it can). `Op.select` takes the first that can, logs the choice once (rank 0,
logger "osim_kernels"), and never changes it behind the caller's back: an override that cannot run is an error.

Override for one run with `OSIM_KERNELS=packed_attention=reference,rms_norm=liger`, or from a config with `use(...)`;
the environment wins, because it is what the person at the terminal typed last.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

VARIABLE = "OSIM_KERNELS"

log = logging.getLogger("osim_kernels")


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One way to compute an op.

    name      what an override writes: "reference", "sdpa", "liger", ...
    load      imports and returns the callable; called once, at the first selection (Triton and Liger import slowly)
    refuses   refuses(device, dtype, **case) -> why this case cannot run here, or None when it can
    """

    name: str
    load: Callable[[], Callable]
    refuses: Callable[..., str | None]


class Op:
    """A named operation and its implementations, preferred first."""

    def __init__(self, name: str, *implementations: Implementation) -> None:
        assert name not in _ops, f"kernel op {name} is declared twice"
        self.name = name
        self.implementations = {implementation.name: implementation for implementation in implementations}
        self._selected: dict[tuple, Callable] = {}
        _ops[name] = self

    def select(self, device: torch.device, dtype: torch.dtype, **case: Any) -> Callable:
        """The callable for this case. `case` holds hashable facts beyond device and dtype, such as head_dim.

        Raises ValueError when an override names an unknown implementation, one that cannot run this case, or when
        nothing can run it.
        """
        override = _override_text()
        key = (override, device, dtype, *case.items())
        if key not in self._selected:
            implementation, reason = self._choose(device, dtype, case, override)
            _log_once(f"kernels: {self.name} -> {implementation.name} ({reason})")
            self._selected[key] = implementation.load()
        return self._selected[key]

    def _choose(self, device, dtype, case: dict[str, Any], override: str) -> tuple[Implementation, str]:
        place = f"{device.type} {str(dtype).removeprefix('torch.')}"
        wanted = parse(override).get(self.name)
        if wanted is not None:
            why_not = self.implementations[wanted].refuses(device, dtype, **case)
            if why_not:
                raise ValueError(f"{VARIABLE}: {self.name}={wanted} cannot run on {place}: {why_not}")
            return self.implementations[wanted], f"asked for by {VARIABLE} or the config, {place}"
        refused = []
        for implementation in self.implementations.values():
            why_not = implementation.refuses(device, dtype, **case)
            if why_not is None:
                passed_over = f"; not {', '.join(refused)}" if refused else ""
                return implementation, f"first that runs on {place}{passed_over}"
            refused.append(f"{implementation.name}: {why_not}")
        raise ValueError(f"no implementation of {self.name} runs on {place}: {'; '.join(refused)}")


_ops: dict[str, Op] = {}
_logged: set[str] = set()
_config_override = ""


def use(overrides: str) -> None:
    """Set the overrides of this process from a config ("op=implementation,..."; "" clears them).

    Raises ValueError on a malformed entry, an unknown op or an unknown implementation.
    """
    global _config_override
    parse(overrides)
    _config_override = overrides


def parse(overrides: str) -> dict[str, str]:
    """ "op=implementation,..." as a dict; ValueError names the first entry that no op answers to."""
    choices = {}
    for entry in filter(None, (part.strip() for part in overrides.split(","))):
        op, equals, implementation = entry.partition("=")
        if not equals:
            raise ValueError(f"{VARIABLE}: {entry!r} is not op=implementation")
        if op not in _ops:
            raise ValueError(f"{VARIABLE}: unknown op {op!r}; known ops: {', '.join(sorted(_ops))}")
        if implementation not in _ops[op].implementations:
            known = ", ".join(_ops[op].implementations)
            raise ValueError(f"{VARIABLE}: {op} has no implementation {implementation!r}; it has {known}")
        choices[op] = implementation
    return choices


def report(device: torch.device, dtype: torch.dtype) -> dict[str, dict[str, str | None]]:
    """op -> implementation -> None where it runs in the ordinary case, else why not. For the doctor."""
    return {
        name: {impl.name: impl.refuses(device, dtype) for impl in op.implementations.values()}
        for name, op in sorted(_ops.items())
    }


def anywhere(device: torch.device, dtype: torch.dtype, **case: Any) -> str | None:
    """Predicate of plain PyTorch code."""
    return None


def needs_cuda(device: torch.device, dtype: torch.dtype, **case: Any) -> str | None:
    """Predicate of Triton and CUDA code without further limits."""
    return None if device.type == "cuda" else "needs a CUDA device"


def _override_text() -> str:
    return ",".join(filter(None, (_config_override, os.environ.get(VARIABLE, ""))))


def _log_once(message: str) -> None:
    if message in _logged:
        return
    _logged.add(message)
    rank = dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))
    if rank == 0:
        log.info(message)
