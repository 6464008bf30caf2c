"""Log-prob of one token per query row over the whole vocabulary, which makes label logits into label probabilities.

A label's probability is exp(z_label - lse), with lse over the whole vocabulary. The fused linear log-prob of one label
token a, the anchor, gives z_a - lse without whole logits, vocabulary-parallel too; then log p_e = z_e - z_a + log p_a
for every other label. A row costs 2 D V FLOPs, as much as one token of prefill spends in the head.

Shape suffixes: I items, S contexts, D hidden, V this rank's rows of the head.
"""

import torch
import torch.distributed as dist

from osim_kernels.fused_linear_logprob import fused_linear_logprob
from osim_kernels.judge_score.labels import JudgeLabels
from osim_kernels.judge_score.tables import label_tables


def anchor_tokens(labels: JudgeLabels, device: torch.device) -> torch.Tensor:
    """int64 [S]: the anchor of each context, the smallest token that may follow there."""
    tables = label_tables(labels, device)
    return tables.token_E[tables.first_edge_S[:-1].long()]


def anchors_if_needed(
    hidden_ISD: torch.Tensor,
    head_VD: torch.Tensor,
    labels: JudgeLabels,
    *,
    min_mass: float | None,
    known_IS: torch.Tensor | None,
    group: dist.ProcessGroup | None,
    vocab_start: int,
    vocab_size: int,
) -> torch.Tensor | None:
    """[I, S] log-probs of the anchors, fp32 (fp64 for fp64 inputs): the caller's if known, else None where nothing asks
    for them, else computed. Collective over the group."""
    if known_IS is not None or (min_mass is None and labels.depth == 1):
        return known_IS
    items, contexts = hidden_ISD.shape[:2]
    logprob_Q, _ = fused_linear_logprob(
        hidden_ISD.flatten(0, 1),
        head_VD,
        anchor_tokens(labels, hidden_ISD.device).repeat(items),
        tensor_parallel_group=group,
        vocab_start=vocab_start,
        vocab_size=vocab_size,
    )
    return logprob_Q.view(items, contexts)
