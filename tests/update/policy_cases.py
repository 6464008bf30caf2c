"""What a rank of the worker group runs in the tests of the policy and kl streams."""

from dataclasses import replace

import torch

from osim_core.config import LayoutConfig
from osim_core.loss.streams import Objective
from tests.parallel.cases import gather, local_rows
from tests.support.models import TINY_QWEN3
from tests.update.cases import learner


def update(layout: LayoutConfig, rows: list, settings: Objective, reference_shift: float | None = None, steps: int = 1):
    """Updates on these rows. {"value", "norm", "policy", "logprobs", "gradients" of the first}, all whole.

    From the second step on, old log-probs are those before the first. reference_shift: the reference's log-probs are
    the policy's before the first step plus this.
    """
    with learner(layout) as built:
        built.objective = settings
        mine = local_rows(rows)
        before = built.logprobs(mine)
        if reference_shift is not None:
            mine = [
                replace(row, policy=replace(row.policy, reference_logprobs_T=logprob_T + reference_shift))
                for row, logprob_T in zip(mine, before, strict=True)
            ]
        result = {"logprobs": before, "values": [], "norms": [], "policy": []}
        for step in range(steps):
            outcome = built.update(mine, step)
            if step == 0:
                result["gradients"] = gather(built, TINY_QWEN3, lambda parameter: parameter.main_grad)
                mine = [
                    replace(row, policy=replace(row.policy, old_logprobs_T=logprob_T))
                    for row, logprob_T in zip(mine, before, strict=True)
                ]
            result["values"].append(outcome.objective)
            result["norms"].append(outcome.gradient_norm)
            result["policy"].append(outcome.policy and outcome.policy.means())
        return result


def weighted_cross_entropy(rows: list) -> dict:
    """The ce stream on the same rows, each token weighted by weight x advantage: its gradient norm."""
    with learner(LayoutConfig(distributed_optimizer=False)) as built:
        plain = [
            replace(row, weights={"ce": row.weights["policy"] * row.policy.advantages_T}, policy=None) for row in rows
        ]
        total = sum(float(row.weights["policy"].sum()) for row in rows)
        signed = sum(float(row.weights["ce"].sum()) for row in plain)
        outcome = built.update(plain, 0)
        gradients = gather(built, TINY_QWEN3, lambda parameter: parameter.main_grad)
        return {"norm": outcome.gradient_norm * abs(signed) / total, "scale": signed / total, "gradients": gradients}


def poisoned(rows: list) -> list:
    """The same rows with NaN wherever no stream has a weight."""

    def poison(row):
        idle_T = torch.stack(list(row.weights.values())).abs().amax(0) == 0
        return replace(row, policy=row.policy.map(lambda column_T: column_T.masked_fill(idle_T, float("nan"))))

    return [poison(row) for row in rows]


def reference(rows: list, changed: bool) -> dict:
    """Reference log-probs of rows after two updates, those of the start, and whether any weight moved by asking."""
    from osim_core.checkpoint.hf import RandomWeights
    from osim_core.update.reference import Reference
    from tests.update.cases import weights

    with learner(LayoutConfig()) as built:
        start = built.logprobs(rows)
        if changed:
            for step in range(2):
                built.update(rows, step)
        before, now = weights(built), built.logprobs(rows)
        kept = Reference(built, RandomWeights(TINY_QWEN3, seed=5), TINY_QWEN3)
        annotated = kept.annotate(rows)
        after = weights(built)
        return {
            "start": start,
            "now": now,
            "reference": [row.policy.reference_logprobs_T for row in annotated],
            "weights_unchanged": all(torch.equal(before[name], after[name]) for name in before),
        }
