"""Timing on a GPU: a contender is compared with the truth first, and a wrong one gets no speed.

Times are of CUDA events around single calls, the L2 cache flushed before each, after warm-up calls. Shares of peak are
of what this card reached in the same run: a square bf16 product of cuBLAS, and a copy.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from rich.table import Table

from benchmarks.ledger import quantiles

L2_FLUSH_BYTES = 256 << 20
WARM_UP, REPEATS = 5, 50

Contender = Callable[..., torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One op on one set of inputs.

    inputs       tensors and settings by name, passed to every contender by keyword
    learned      names of the inputs that take a gradient; empty measures forward alone
    truth        reference in fp32; the tolerance is on the largest difference over the truth's largest magnitude,
                 of the output and of every gradient
    contenders   "osim" and whichever peers are installed
    flops, moved_bytes   of forward and of forward with backward
    candidates   name -> a context in which "osim" runs another static configuration, for --tune
    """

    op: str
    case: dict
    inputs: dict
    learned: tuple[str, ...]
    truth: Contender
    contenders: dict[str, Contender]
    tolerance: float
    flops: tuple[float, float]
    moved_bytes: tuple[float, float]
    candidates: dict[str, Callable[[], AbstractContextManager]] = field(default_factory=dict)


class Clock(Protocol):
    """seconds of each timed call, and the device's name."""

    device: str

    def __call__(self, function: Callable[[], object]) -> list[float]: ...


class EventClock:
    """CUDA events; one pair a call, read after all calls."""

    def __init__(self) -> None:
        self.device = torch.cuda.get_device_name()
        self._flush = torch.empty(L2_FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def __call__(self, function: Callable[[], object]) -> list[float]:
        for _ in range(WARM_UP):
            function()
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPEATS)]
        for start, stop in pairs:
            self._flush.zero_()
            start.record()
            function()
            stop.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(stop) / 1e3 for start, stop in pairs]


@dataclass(frozen=True)
class Peaks:
    """What the card reached: flops of a bf16 product, bytes (read and written) of a copy, per second."""

    flops: float
    bandwidth: float


def measured_peaks(clock: Clock, size: int = 8192, device: str = "cuda") -> Peaks:
    """Time a [size, size] bf16 product and a copy of 8 size^2 bytes."""
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    source = torch.zeros(size, size, dtype=torch.float64, device=device)
    target = torch.empty_like(source)
    product = quantiles(clock(lambda: a @ b))["p50_s"]
    copy = quantiles(clock(lambda: target.copy_(source)))["p50_s"]
    return Peaks(2 * size**3 / product, 2 * source.nbytes / copy)


def rows(problem: Problem, clock: Clock, peaks: Peaks, tune: bool = False) -> list[tuple[dict, dict]]:
    """(case, result) per contender and direction; a wrong contender gets one row, with its error and no speed."""
    rung = f"measured on {clock.device}"
    truths = _values(problem.truth, _widened(problem.inputs), problem.learned)
    case = {"op": problem.op, **problem.case}
    found = []
    for name, contender in problem.contenders.items():
        about = {"kind": "speed", "implementation": name, **case}
        found += _rows(problem, contender, truths, about, clock, peaks, rung)
    for name, configured in problem.candidates.items() if tune else ():
        with configured():
            about = {"kind": "tune", "implementation": f"osim {name}", **case}
            found += _rows(problem, problem.contenders["osim"], truths, about, clock, peaks, rung)
    return found


def _rows(problem, contender, truths, about, clock, peaks, rung) -> list[tuple[dict, dict]]:
    error = _error(_values(contender, problem.inputs, problem.learned), truths)
    if not error <= problem.tolerance:  # NaN is wrong too
        wrong = f"error {error:.3g} above {problem.tolerance:.3g}"
        return [(about, {"rung": rung, "wrong": wrong})]
    found = []
    for index, direction in enumerate(["forward", "forward+backward"] if problem.learned else ["forward"]):
        timings = quantiles(clock(_call(contender, problem, backward=index == 1)))
        speed = problem.flops[index] / timings["p50_s"], problem.moved_bytes[index] / timings["p50_s"]
        result = {
            "rung": rung,
            "error": error,
            **timings,
            "tflops": speed[0] / 1e12,
            "tb_per_s": speed[1] / 1e12,
            "share_of_peak_flops": speed[0] / peaks.flops,
            "share_of_peak_bandwidth": speed[1] / peaks.bandwidth,
        }
        found.append(({**about, "direction": direction}, result))
    return found


def _call(contender: Contender, problem: Problem, backward: bool) -> Callable[[], object]:
    if not backward:
        return torch.no_grad()(lambda: contender(**problem.inputs))
    inputs, leaves = _leaves(problem.inputs, problem.learned)
    upstream = torch.randn_like(contender(**inputs))
    return lambda: torch.autograd.grad(contender(**inputs), leaves, upstream)


def _leaves(inputs: dict, learned: tuple[str, ...]) -> tuple[dict, list[torch.Tensor]]:
    fresh = {name: inputs[name].detach().clone().requires_grad_() for name in learned}
    return {**inputs, **fresh}, list(fresh.values())


def _values(contender: Contender, inputs: dict, learned: tuple[str, ...]) -> list[torch.Tensor]:
    """The output and the gradients of its sum under fixed weights."""
    inputs, leaves = _leaves(inputs, learned)
    out = contender(**inputs)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out).to(out.dtype)
    return [out.detach(), *(torch.autograd.grad(out, leaves, weights) if leaves else ())]


def _widened(inputs: dict) -> dict:
    def wide(value):
        narrow = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
        return value.float() if narrow else value

    return {name: wide(value) for name, value in inputs.items()}


def _error(values: list[torch.Tensor], truths: list[torch.Tensor]) -> float:
    differences = []
    for mine, truth in zip(values, truths, strict=True):
        worst = (mine.float() - truth.float()).abs().max() / truth.float().abs().max().clamp(min=1e-6)
        differences.append(float("nan") if worst.isnan() else float(worst))
    return max(differences, key=lambda x: float("inf") if x != x else x)


def table(rows: list[tuple[dict, dict]]) -> Table:
    """One line per row."""
    drawn = Table("op", "implementation", "case", "p50 ms", "p20", "p80", "TFLOP/s", "TB/s", "of peak")
    for case, result in rows:
        known = ("kind", "op", "implementation")
        about = ", ".join(f"{name} {value}" for name, value in case.items() if name not in known)
        first = (case["op"], case["implementation"], about)
        if "wrong" in result:
            drawn.add_row(*first, f"WRONG: {result['wrong']}")
            continue
        times = [f"{result[name] * 1e3:.3f}" for name in ("p50_s", "p20_s", "p80_s")]
        share = max(result["share_of_peak_flops"], result["share_of_peak_bandwidth"])
        drawn.add_row(*first, *times, f"{result['tflops']:.0f}", f"{result['tb_per_s']:.2f}", f"{share:.0%}")
    return drawn
