"""Small models and random packed rows for tests."""

import torch

from osim_core.batch import PackedBatch
from osim_core.config import ModelConfig

TINY_QWEN3 = ModelConfig(
    family="qwen3",
    num_layers=4,
    hidden_size=64,
    ffn_hidden_size=160,
    num_heads=8,
    num_kv_heads=4,
    head_dim=16,
    vocab_size=96,
    max_position_embeddings=256,
    rope_theta=1_000_000.0,
    qk_norm=True,
    init_std=0.08,
)


def random_rows(
    rows: int, length: int, vocab_size: int, seed: int = 0, max_document: int = 40, padding: int = 5
) -> list[PackedBatch]:
    """Rows of documents of random odd lengths (1 included) with random loss weights and a padding tail."""
    generator = torch.Generator().manual_seed(seed)
    return [_random_row(length, vocab_size, generator, max_document, padding) for _ in range(rows)]


def _random_row(length: int, vocab_size: int, generator: torch.Generator, max_document: int, padding: int):
    lengths = []
    while sum(lengths) < length - padding:
        drawn = int(torch.randint(1, max_document, (), generator=generator))
        lengths.append(min(drawn, length - padding - sum(lengths)))
    tokens, labels, positions, weight = [], [], [], []
    for n in lengths:
        document = torch.randint(0, vocab_size, (n,), generator=generator)
        tokens.append(document)
        labels.append(torch.cat([document[1:], torch.zeros(1, dtype=torch.long)]))
        positions.append(torch.arange(n))
        carries = (torch.rand(n, generator=generator) < 0.6).float()
        carries[-1] = 0.0
        weight.append(carries)
    empty = torch.zeros(padding, dtype=torch.long)
    return PackedBatch(
        tokens_T=torch.cat([*tokens, empty]),
        labels_T=torch.cat([*labels, empty]),
        positions_T=torch.cat([*positions, torch.arange(padding)]),
        cu_seqlens=torch.tensor([0, *lengths, padding]).cumsum(0).int(),
        weights={"ce": torch.cat([*weight, torch.zeros(padding)])},
        sources_S=torch.tensor([i % 3 for i in range(len(lengths))] + [-1], dtype=torch.int32),
        documents_S=torch.tensor([*range(len(lengths)), -1]),
    )


def merge_rows(first: PackedBatch, second: PackedBatch) -> PackedBatch:
    """Two rows as one row twice as long."""

    def both(name: str) -> torch.Tensor:
        return torch.cat([getattr(first, name), getattr(second, name)])

    return PackedBatch(
        tokens_T=both("tokens_T"),
        labels_T=both("labels_T"),
        positions_T=both("positions_T"),
        cu_seqlens=torch.cat([first.cu_seqlens, second.cu_seqlens[1:] + first.num_tokens]),
        weights={name: torch.cat([weight, second.weights[name]]) for name, weight in first.weights.items()},
        sources_S=both("sources_S"),
        documents_S=both("documents_S"),
    )
