"""What a rank of the worker group runs in these tests; module-level, so spawned ranks import it."""

from osim_core.config import LayoutConfig
from tests.update.cases import learner


def reference_logprobs(layout: LayoutConfig, prompts: list, replies: list, length: int) -> list:
    """Per reply, its tokens' log-probs as the trainer computes them in this layout."""
    from osim_core.reward.likelihood import packed_references
    from osim_core.reward.likelihood import reference_logprobs as cut

    with learner(layout) as built:
        rows = packed_references(prompts, replies, length)
        return cut(built.logprobs(rows), rows, len(replies))
