"""What every attention layer needs to know about a packed row, computed once a micro-batch and shared by all layers.

It travels as megatron-core's `packed_seq_params`, so unmodified TransformerLayers hand it to our core attention.
Shape suffixes: T tokens of the row, L this context-parallel rank's tokens, D head dim.
"""

from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams

from osim_core.batch import PackedBatch
from osim_core.config import ModelConfig
from osim_core.parallel.context import local_chunks, local_slice
from osim_kernels.packed_attention import Segments
from osim_kernels.rope import rope_tables


@dataclass(kw_only=True)
class PackedRow(PackedSeqParams):
    """Attention metadata of one row: which keys a query may see, and its rotary tables.

    segments   the packed_attention plan of this rank's queries against the whole row's keys
    cos_LD     float32 [L, D]; sin_LD likewise, for this rank's positions
    """

    segments: Segments = None
    cos_LD: torch.Tensor = None
    sin_LD: torch.Tensor = None

    @classmethod
    def of(cls, batch: PackedBatch, model: ModelConfig, device: torch.device) -> "PackedRow":
        """The metadata of `batch`, a row still on the host, on `device`, for this rank's place under CP.

        Taken from the host's copy because the segments' borders are needed there: reading them back from a GPU would
        stall it once a micro-batch.
        """
        rank = parallel_state.get_context_parallel_rank()
        size = parallel_state.get_context_parallel_world_size()
        chunks = local_chunks(batch.num_tokens, rank, size)
        segments = Segments.context_parallel(batch.cu_seqlens, chunks, batch.parents_S)
        positions_L = local_slice(batch.positions_T, rank, size).to(device, non_blocking=True)
        cos_LD, sin_LD = rope_tables(positions_L, model.head_dim, model.rope_theta, model.rope_scaling)
        cu_seqlens = batch.cu_seqlens.to(device, non_blocking=True)
        return cls(
            qkv_format="thd",
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_kv=cu_seqlens,
            segments=segments.to(device),
            cos_LD=cos_LD,
            sin_LD=sin_LD,
        )
