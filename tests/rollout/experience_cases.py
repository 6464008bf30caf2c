"""What a rank of the worker group runs in the tests of experience."""

from osim_core.config import LayoutConfig


def updates(parts: list[list], **settings) -> tuple:
    """exchange() this rank's part of the experience, then build_updates()."""
    import torch.distributed as dist

    from osim_core.parallel.layout import initialize

    initialize(LayoutConfig(), seed=1)
    from megatron.core import parallel_state

    from osim_core.rollout.experience import build_updates, exchange

    try:
        experience = exchange(parts[dist.get_rank()])
        return experience, build_updates(experience, **settings)
    finally:
        parallel_state.destroy_model_parallel()
