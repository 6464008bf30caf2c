"""Compile audit of judge scoring: rubrics of seven dimensions asked of 512 items, in every dtype and variant."""

import torch

from osim_kernels.judge_score import DimensionLabels, JudgeLabels
from osim_kernels.judge_score import triton as ours
from osim_kernels.judge_score.tables import label_tables
from osim_kernels.proof import Case, Expect
from osim_kernels.proof.hopper import DEVICE

ITEMS, HIDDEN, VOCAB = 512, 4096, 32768
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
TWO_SPELLINGS = tuple(((n,), (n + 10,)) for n in range(10))  # 20 edges a context; with one spelling 10
ONE_SPELLING = tuple(((n,),) for n in range(10))


def _rubric(labels) -> JudgeLabels:
    return JudgeLabels(tuple(DimensionLabels(f"anchor {j}", labels, tuple(range(10))) for j in range(7)))


RUBRIC = _rubric(TWO_SPELLINGS)


def _launch(dtype, *, rubric=RUBRIC, anchors=True, detectors=True):
    """The whole call. Tensors on the meta device have no values: a call that waited for one would raise."""

    def launch():
        shape = ITEMS, len(rubric.contexts)
        missing_IJ = torch.empty(ITEMS, len(rubric.dimensions), dtype=torch.bool, device=DEVICE)
        ours.judge_score_triton(
            torch.empty(*shape, HIDDEN, dtype=dtype, device=DEVICE),
            torch.empty(VOCAB, HIDDEN, dtype=dtype, device=DEVICE),
            rubric,
            min_mass=0.5 if anchors else None,
            anchor_logprob_IS=torch.empty(shape, device=DEVICE) if anchors else None,
            missing_IJ=missing_IJ if detectors else None,
            multiplier_I=torch.empty(ITEMS, device=DEVICE) if detectors else None,
            group=None,
            vocab_start=0,
            vocab_size=VOCAB,
        )

    return launch


def _launch_logits(dtype, config):
    def launch():
        hidden_ISD = torch.empty(ITEMS, len(RUBRIC.contexts), HIDDEN, dtype=dtype, device=DEVICE)
        head_VD = torch.empty(VOCAB, HIDDEN, dtype=dtype, device=DEVICE)
        ours.label_logits(hidden_ISD, head_VD, label_tables(RUBRIC, DEVICE), max(RUBRIC.edges_per_context), 0, config)

    return launch


def _launch_groups(kind):
    def launch():
        ours.group_advantages_triton(
            torch.empty(ITEMS, device=DEVICE), torch.empty(ITEMS, dtype=torch.int64, device=DEVICE), kind, 1e-6
        )

    return launch


LOGITS = {"_logits_kernel": Expect(async_copy=True)}
BOTH = {**LOGITS, "_scores_kernel": Expect()}  # gathers through the tables, so its loads cannot be wide
GROUPS = {"_groups_kernel": Expect()}
ONE = _rubric(ONE_SPELLING)

CASES = (
    *(Case(name=name, launch=_launch(dtype), expect=BOTH, slow=name == "fp16") for dtype, name in NAMES.items()),
    Case(
        name="bf16, one spelling, no mass",
        launch=_launch(torch.bfloat16, rubric=ONE, anchors=False, detectors=False),
        expect=BOTH,
    ),
    Case(name="fp32, one spelling", launch=_launch(torch.float32, rubric=ONE), expect=BOTH, slow=True),
    Case(name="groups", launch=_launch_groups("grpo"), expect=GROUPS),
    *(
        Case(name=f"groups {kind}", launch=_launch_groups(kind), expect=GROUPS, slow=True)
        for kind in ("dr_grpo", "rloo")
    ),
    *(
        Case(
            name=f"{NAMES[dtype]} candidate {config.name}",
            launch=_launch_logits(dtype, config),
            expect=LOGITS,
            slow=True,
        )
        for dtype in (torch.bfloat16, torch.float32)
        for config in ours.CANDIDATES[dtype.itemsize]
    ),
)
