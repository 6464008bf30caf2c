"""What a step of reinforcement learning says about itself, from all ranks' experience: names for metrics.jsonl."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from osim_core.missing import Missing, Value
from osim_core.reward.compose import summary
from osim_core.rollout.experience import Experience, Updates
from osim_core.update.learner import StepResult


def mean_of(values: Sequence[Value]) -> dict[str, float]:
    """{"mean": ..., "missing": share}; no mean where all are missing."""
    present = [value for value in values if not isinstance(value, Missing)]
    found = {"missing": 1.0 - len(present) / len(values)} if values else {}
    return {**found, "mean": sum(present) / len(present)} if present else found


def reward_metrics(experience: Sequence[Experience], prefix: str) -> dict[str, float]:
    """Rewards before and after detectors, by task, by the judge that only watches; what is missing and flagged."""
    records = [episode.record for episode in experience if episode.record]  # re-attached replies were counted once
    found = {name.replace("rl/", f"{prefix}/", 1): value for name, value in summary(records).items()}
    tasks = sorted({episode.task for episode in experience})
    if len(tasks) > 1:
        for task in tasks:
            scored = mean_of([episode.reward for episode in experience if episode.task == task])
            found |= {f"{prefix}/reward/{task}": scored["mean"]} if "mean" in scored else {}
    watched = mean_of([episode.held_out for episode in experience])
    return {**found, f"{prefix}/reward_held_out": watched["mean"]} if "mean" in watched else found


def sample_metrics(experience: Sequence[Experience]) -> dict[str, float]:
    """Length and spread of what the policy wrote.

    rl/entropy: mean of -log p of the sampled tokens, an unbiased estimate of the sampling distribution's entropy per
    token (nats). rl/diversity: distinct pairs of neighbouring tokens over all pairs.
    """
    sequences = [sequence for episode in experience for sequence in episode.sequences]
    written = [
        [(token, logprob) for token, logprob, own in zip(s.reply, s.logprobs, s.is_policy, strict=True) if own]
        for s in sequences
    ]
    tokens = sum(map(len, written))
    if not tokens:
        return {}
    pairs = Counter((first, second) for reply in written for (first, _), (second, _) in pairwise(reply))
    return {
        "rl/length": tokens / len(sequences),
        "rl/entropy": -sum(logprob for reply in written for _, logprob in reply) / tokens,
        "rl/diversity": len(pairs) / max(1, pairs.total()),
    }


def update_metrics(updates: Updates, results: Sequence[StepResult], version: int, oldest: int) -> dict[str, float]:
    """What the learner did. `version`: of the weights before the step; `oldest`: of the weights that wrote its samples.

    rl/mismatch* compare the trainer's log-probs before the step with the sampler's. Where the samples are as new as the
    trainer (rl/staleness 0) that is numerics alone; otherwise the policy's own change is in it.
    """
    found = {
        "rl/groups": updates.groups,
        "rl/groups_uniform": updates.uniform / max(1, updates.groups),
        "rl/tokens": updates.tokens,
        "rl/staleness": version - oldest,
        "train/skipped": sum(not result.updated for result in results),
    }
    if not results:
        return found
    found |= {
        "train/loss": sum(result.objective for result in results) / len(results),
        "train/grad_norm": max(result.gradient_norm for result in results),
        "train/learning_rate": results[-1].learning_rate,
    }
    policy = results[0].policy
    for result in results[1:]:
        policy = policy + result.policy
    means = policy.means()
    names = ("clip_low", "clip_high", "dual_clip", "k3", "mismatch", "mismatch_max", "mismatch_exp", "truncated")
    return found | {f"rl/{name}": means[name] for name in names}
