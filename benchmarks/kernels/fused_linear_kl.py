"""Fused linear Jensen-Shannon divergence: 4,096 tokens, student width 2,048, teacher width 4,096, vocabulary 151,936.

Shape suffixes: T tokens, V vocabulary.
"""

from unittest import mock

import torch

from benchmarks.kernels.measure import Problem
from benchmarks.kernels.offline_report import Work
from osim_kernels.fused_linear_kl.divergence import Divergence, Scaling
from osim_kernels.fused_linear_kl.triton import CANDIDATES, CONFIGS, fused_linear_kl_triton

TOKENS, STUDENT, TEACHER, VOCABULARY = 4096, 2048, 4096, 151_936
BETA = 0.5


def work() -> dict[str, Work]:
    """Both heads' logits in each pass: two passes forward (normalisers, then the mixture), one backward, which adds the
    products for the student's two gradients."""
    shape = f"T {TOKENS}, D {STUDENT} and {TEACHER}, V {VOCABULARY}"
    both = 2.0 * TOKENS * VOCABULARY * (STUDENT + TEACHER)
    gradients = 4.0 * TOKENS * VOCABULARY * STUDENT
    operands = 2.0 * (TOKENS + VOCABULARY) * (STUDENT + TEACHER)
    tile = CONFIGS[2, True]  # the mixture's
    step = 4 * tile.tokens * tile.columns * tile.depth, 4 * tile.depth * (tile.tokens + tile.columns)
    return {
        "forward": Work(shape, 2 * both, operands, *step),
        "backward": Work(shape, both + gradients, operands + 2.0 * (TOKENS + VOCABULARY) * STUDENT, *step),
    }


def offline_peers() -> dict:
    """Liger's fused linear JSD: cuBLAS for the products, Triton for the divergence over a chunk of fp32 logits."""
    return {"liger fused linear JSD": _liger}


def _liger() -> None:
    from liger_kernel.ops.fused_linear_jsd import LigerFusedLinearJSDFunction

    student, head, teacher, teacher_head = (
        torch.zeros(rows, 128, dtype=torch.bfloat16, requires_grad=learns)
        for rows, learns in ((64, True), (32_768, True), (64, False), (32_768, False))
    )
    LigerFusedLinearJSDFunction.apply(student, head, teacher, teacher_head, None, BETA).backward()


def problems(device: torch.device) -> list[Problem]:
    """The shape above, bf16."""
    return [problem(TOKENS, STUDENT, TEACHER, VOCABULARY, device, torch.bfloat16)]


def problem(tokens, student_size, teacher_size, vocabulary, device, dtype) -> Problem:
    """The mean divergence over the tokens, which is what Liger's returns; a tiny one runs in the interpreter."""
    shapes = {
        "student": (tokens, student_size),
        "head": (vocabulary, student_size),
        "teacher": (tokens, teacher_size),
        "teacher_head": (vocabulary, teacher_size),
    }
    scales = {"student": 1.0, "head": student_size**-0.5, "teacher": 1.0, "teacher_head": teacher_size**-0.5}
    inputs = {name: (torch.randn(shape, device=device) * scales[name]).to(dtype) for name, shape in shapes.items()}
    plain = Scaling(1.0, None)

    def osim(student, head, teacher, teacher_head):
        settings = {"real_rows": vocabulary, "group": None, "divergence": Divergence("jsd", BETA)}
        kl_T = fused_linear_kl_triton(student, head, teacher, teacher_head, student=plain, teacher=plain, **settings)
        return kl_T.mean()

    def truth(student, head, teacher, teacher_head):
        q_TV = (student @ head.T).float().log_softmax(-1)
        p_TV = (teacher @ teacher_head.T).float().log_softmax(-1)
        m_TV = (BETA * p_TV.exp() + (1 - BETA) * q_TV.exp()).log()
        parts = BETA * p_TV.exp() * (p_TV - m_TV) + (1 - BETA) * q_TV.exp() * (q_TV - m_TV)
        return parts.sum(-1).mean()

    contenders = {"osim": osim}
    if device.type == "cuda":
        from liger_kernel.ops.fused_linear_jsd import LigerFusedLinearJSDFunction

        def liger(student, head, teacher, teacher_head):
            return LigerFusedLinearJSDFunction.apply(student, head, teacher, teacher_head, None, BETA)

        contenders |= {"liger fused linear JSD": liger, "torch.compile": torch.compile(truth)}
    both = 2.0 * tokens * vocabulary * (student_size + teacher_size)
    moved = sum(x.nbytes for x in inputs.values())
    return Problem(
        op="fused_linear_kl",
        case={"tokens": tokens, "student": student_size, "teacher": teacher_size, "vocabulary": vocabulary}
        | {"dtype": str(dtype).removeprefix("torch.")},
        inputs=inputs,
        learned=("student", "head"),
        truth=truth,
        contenders=contenders,
        tolerance=2e-2 if dtype != torch.float32 else 1e-5,
        flops=(both, both + 6.0 * tokens * vocabulary * student_size),
        moved_bytes=(moved, 2 * moved + inputs["head"].nbytes),
        candidates={
            f"{config.name}{' beside a third tile' if key[1] else ''}": lambda key=key, config=config: mock.patch.dict(
                CONFIGS, {key: config}
            )
            for key, configs in CANDIDATES.items()
            if key[0] == dtype.itemsize
            for config in configs
        },
    )
