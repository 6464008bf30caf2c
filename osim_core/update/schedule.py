"""The learning rate is a pure function of the step, so resuming needs no scheduler state."""

import math

from osim_core.config import OptimizerConfig


def learning_rate(optimizer: OptimizerConfig, step: int, steps: int) -> float:
    """Learning rate of update `step` (0-based) of `steps`: linear warm-up, then the schedule down to the minimum.

    The first update already moves (rate peak / warmup_steps). "wsd" (warm-up, stable, decay; MiniCPM,
    arXiv 2404.06395) stays at the peak until the last `decay_steps` updates, then falls linearly.
    """
    peak, low, warmup = optimizer.learning_rate, optimizer.min_learning_rate, optimizer.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if optimizer.schedule == "constant":
        return peak
    if optimizer.schedule == "wsd":
        left = steps - step
        return peak if left >= optimizer.decay_steps else low + (peak - low) * left / optimizer.decay_steps
    progress = (step - warmup) / max(1, steps - warmup)
    return low + (peak - low) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
