"""Judge scoring: 512 replies on seven dimensions of ten anchors, Qwen3-8B's head, with and without the label mass.

Shape suffixes: I items, S contexts, D hidden, V vocabulary.
"""

from unittest import mock

import torch

from benchmarks.kernels.measure import Problem
from benchmarks.kernels.offline_report import Work
from osim_kernels.judge_score import DimensionLabels, JudgeLabels
from osim_kernels.judge_score import triton as host
from osim_kernels.judge_score.gathered import group_advantages_gathered, judge_score_gathered
from osim_kernels.judge_score.reference import judge_score_reference

ITEMS, HIDDEN, VOCAB = 512, 4096, 151_936
DIMENSIONS, ANCHORS, GROUP = 7, 10, 8
EPSILON = 1e-6


def rubric(dimensions: int = DIMENSIONS) -> JudgeLabels:
    """Dimensions of ten anchors, each one token, the same tokens for all."""
    labels, values = tuple(((token,),) for token in range(ANCHORS)), tuple(range(1, ANCHORS + 1))
    return JudgeLabels(tuple(DimensionLabels(f"dimension {j}", labels, values) for j in range(dimensions)))


def work() -> dict[str, Work]:
    """The label logits read hidden states and label rows once; the scores read logits and write seven figures and the
    labels' log-probs; the anchors are fused_linear_logprob over every query row, with the whole head."""
    queries = ITEMS * DIMENSIONS
    config, labels = host.LOGITS[2, False], queries * ANCHORS
    tile = 2 * config.items * config.edges * config.depth, 2 * (config.items + config.edges) * config.depth
    shape = f"I {ITEMS} J {DIMENSIONS} D {HIDDEN}"
    return {
        "label logits": Work(
            shape, 2 * labels * HIDDEN, 2 * (queries + DIMENSIONS * ANCHORS) * HIDDEN + 4 * labels, *tile
        ),
        "scores": Work(shape, 30 * labels, 8 * labels + 28 * queries, 30 * 16 * ANCHORS, 8 * 16 * ANCHORS, "fp32"),
        "anchors (for the mass)": Work(
            f"{shape} V {VOCAB}", 2 * queries * HIDDEN * VOCAB, 2 * (queries + VOCAB) * HIDDEN, *tile
        ),
    }


def offline_peers() -> dict:
    """None: the kernels that gather labels elsewhere (vLLM's) start from whole logits, and make neither scores nor
    rewards of them."""
    return {}


def problems(device: torch.device) -> list[Problem]:
    """With the label mass, and of the labels alone."""
    return [problem(ITEMS, DIMENSIONS, HIDDEN, VOCAB, device, torch.bfloat16, min_mass) for min_mass in (0.0, None)]


def problem(items: int, dimensions: int, hidden_size: int, vocab: int, device, dtype, min_mass=0.0) -> Problem:
    """All present, groups of eight; the output is every normalised score, reward and advantage."""
    labels = rubric(dimensions)
    inputs = {
        "hidden_ISD": torch.randn(items, dimensions, hidden_size, device=device).to(dtype),
        "head_VD": (torch.randn(vocab, hidden_size, device=device) / hidden_size**0.5).to(dtype),
    }
    multiplier_I = torch.rand(items, device=device)
    group_I = torch.arange(items, device=device) // GROUP

    def scored(judge, advantages):
        def run(hidden_ISD, head_VD):
            scores = judge(
                hidden_ISD, head_VD, labels, min_mass=min_mass, anchor_logprob_IS=None, missing_IJ=None,
                multiplier_I=multiplier_I, group=None, vocab_start=0, vocab_size=vocab,
            )  # fmt: skip
            group = advantages(scores.reward_I, group_I, "dr_grpo", EPSILON)
            return torch.cat((scores.normalised_IJ.flatten(), scores.reward_I, group.advantage_I))

        return run

    contenders = {
        "osim": scored(host.judge_score_triton, host.group_advantages_triton),
        "osim gathered": scored(judge_score_gathered, group_advantages_gathered),
        "whole logits": scored(judge_score_reference, group_advantages_gathered),
    }
    if device.type == "cuda":
        from osim_kernels.judge_score import cuda

        contenders["osim cuda"] = scored(cuda.judge_score_cuda, cuda.group_advantages_cuda)
    counted = work().values() if min_mass is not None else list(work().values())[:2]
    return Problem(
        op="judge_score",
        case={
            "items": items,
            "dimensions": dimensions,
            "hidden": hidden_size,
            "vocab": vocab,
            "mass": min_mass is not None,
            "dtype": str(dtype).removeprefix("torch."),
        },
        inputs=inputs,
        learned=(),
        truth=scored(judge_score_reference, group_advantages_gathered),
        contenders=contenders,
        tolerance=1e-4,
        flops=(sum(part.flops for part in counted),) * 2,
        moved_bytes=(sum(part.moved_bytes for part in counted),) * 2,
        candidates={
            config.name: lambda config=config: mock.patch.dict(
                host.LOGITS, {(config_size, wide): config for config_size in (2, 4) for wide in (False, True)}
            )
            for config in host.CANDIDATES[dtype.itemsize]
        },
    )
