"""Rotary tables: cosines and sines of position times frequency, with the context-extension schemes in use.

Frequencies follow the published schemes, in fp32 with the operation order of Hugging Face's models, because training
and inference must rotate by the same angles:
  default  Su et al. 2021 (RoFormer)
  linear   frequencies divided by a factor (position interpolation, Chen et al. 2023)
  llama3   long wavelengths divided by a factor, short ones kept, a linear blend between (Llama 3.1)
  yarn     blend by the number of rotations over the original context, attention scaled (Peng et al. 2023)

Shape suffixes: T tokens, D head dimension, F = D / 2 frequencies.
"""

import math
from typing import Any

import torch

KEYS = {  # rope_type -> (required keys, optional keys)
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}, set()),
    "yarn": (
        {"factor", "original_max_position_embeddings"},
        {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    ),
}


def rope_tables(
    positions_T: torch.Tensor, head_dim: int, theta: float, scaling: dict[str, Any] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos_TD, sin_TD), fp32 [T, head_dim], both halves of the last dimension alike; yarn's attention factor included.

    positions_T  int64 [T]: offset of each token inside its document
    head_dim     even
    theta        base of the frequencies
    scaling      a Hugging Face `rope_scaling` / `rope_parameters` dict, or None

    Raises ValueError naming the key when scaling is of an unknown type, misses a key or has one it does not know.
    """
    frequencies_F, attention_factor = inverse_frequencies(head_dim, theta, scaling)
    angles_TF = positions_T[:, None].float() * frequencies_F.to(positions_T.device)
    angles_TD = torch.cat((angles_TF, angles_TF), dim=-1)
    return angles_TD.cos() * attention_factor, angles_TD.sin() * attention_factor


def inverse_frequencies(head_dim: int, theta: float, scaling: dict[str, Any] | None) -> tuple[torch.Tensor, float]:
    """(fp32 [head_dim / 2] radians per position, factor on the cosines and sines). Raises as `rope_tables`."""
    if head_dim % 2:
        raise ValueError(f"head_dim must be even for rotary embeddings, got {head_dim}")
    kind, settings = _validated(theta, scaling)
    periods_F = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    frequencies_F = 1.0 / periods_F
    if kind == "linear":
        return frequencies_F / settings["factor"], 1.0
    if kind == "llama3":
        return _llama3(frequencies_F, settings), 1.0
    if kind == "yarn":
        return _yarn(periods_F, head_dim, theta, settings), _yarn_attention_factor(settings)
    return frequencies_F, 1.0


def _validated(theta: float, scaling: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    settings = {key: value for key, value in (scaling or {}).items() if value is not None}
    kind = settings.pop("rope_type", settings.pop("type", "default"))
    settings.pop("type", None)  # older folders carry both spellings
    if kind not in KEYS:
        raise ValueError(f"rope_scaling: rope_type {kind!r} is not supported; use one of {', '.join(KEYS)}")
    if settings.pop("rope_theta", theta) != theta:
        raise ValueError(f"rope_scaling: rope_theta {scaling['rope_theta']} contradicts the model's {theta}")
    if settings.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("rope_scaling: partial_rotary_factor other than 1.0 is not supported")
    required, optional = KEYS[kind]
    if missing := required - settings.keys():
        raise ValueError(f"rope_scaling: rope_type {kind!r} needs {', '.join(sorted(missing))}")
    if unknown := settings.keys() - required - optional:
        raise ValueError(f"rope_scaling: rope_type {kind!r} does not know {', '.join(sorted(unknown))}")
    return kind, settings


def _llama3(frequencies_F: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    context, factor = settings["original_max_position_embeddings"], settings["factor"]
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    wavelengths_F = 2 * math.pi / frequencies_F
    slowed_F = torch.where(wavelengths_F > context / low, frequencies_F / factor, frequencies_F)
    blend_F = (context / wavelengths_F - low) / (high - low)
    blended_F = (1 - blend_F) * slowed_F / factor + blend_F * slowed_F
    between_F = (wavelengths_F >= context / high) & (wavelengths_F <= context / low)
    return torch.where(between_F, blended_F, slowed_F)


def _yarn(periods_F: torch.Tensor, head_dim: int, theta: float, settings: dict[str, Any]) -> torch.Tensor:
    context = settings["original_max_position_embeddings"]

    def index_of(
        rotations: float,
    ) -> float:  # the frequency index that turns this often over the original context
        return head_dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = index_of(settings.get("beta_fast", 32)), index_of(settings.get("beta_slow", 1))
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    keep_F = 1 - ((torch.arange(len(periods_F), dtype=torch.float32) - low) / width).clamp(0, 1)
    return 1.0 / (settings["factor"] * periods_F) * (1 - keep_F) + 1.0 / periods_F * keep_F


def _yarn_attention_factor(settings: dict[str, Any]) -> float:
    if "attention_factor" in settings:
        return settings["attention_factor"]

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(settings["factor"]) + 1.0 if settings["factor"] > 1 else 1.0

    if settings.get("mscale") and settings.get("mscale_all_dim"):
        return magnitude(settings["mscale"]) / magnitude(settings["mscale_all_dim"])
    return magnitude(1.0)
