"""RMSNorm, RoPE and SwiGLU equal Hugging Face's modules; rotary tables equal its scaling schemes.

Shape suffixes: T tokens, H query heads, G key heads, D head dimension.
"""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from osim_kernels.rms_norm import rms_norm
from osim_kernels.rope import inverse_frequencies, rope, rope_tables
from osim_kernels.swiglu import swiglu

pytestmark = pytest.mark.usefixtures("poisoned_empty")

SCALINGS = {
    "none": None,
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "llama3, short context": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn, own attention factor": {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 4096,
        "attention_factor": 1.25,
        "beta_fast": 16,
        "beta_slow": 2,
    },
    "yarn, mscale, untruncated": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
        "truncate": False,
    },
}


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize(("head_dim", "theta"), [(64, 10_000.0), (128, 1_000_000.0), (16, 500_000.0)])
def test_rotary_tables_equal_hugging_face(name, head_dim, theta):
    scaling = SCALINGS[name] or {"rope_type": "default"}
    config = LlamaConfig(
        hidden_size=head_dim * 2,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=163_840,
        rope_parameters={"rope_theta": theta, **scaling},
    )
    positions_T = torch.tensor([0, 1, 2, 5, 0, 1, 100, 4095, 8191, 40_000, 131_071])
    cos_TD, sin_TD = rope_tables(positions_T, head_dim, theta, SCALINGS[name])
    theirs = LlamaRotaryEmbedding(config)(torch.zeros(1), positions_T[None])
    assert cos_TD.dtype == sin_TD.dtype == torch.float32
    # an fp32 angle of 131,071 radians has an ulp of 2 ** -7, so positions multiply the last bit of a frequency
    torch.testing.assert_close(cos_TD[:9], theirs[0][0, :9], rtol=0, atol=2e-3)
    torch.testing.assert_close(sin_TD[:6], theirs[1][0, :6], rtol=0, atol=2e-6)
    frequencies, factor = inverse_frequencies(head_dim, theta, SCALINGS[name])
    torch.testing.assert_close(frequencies, LlamaRotaryEmbedding(config).inv_freq, rtol=2e-7, atol=0)
    assert factor == pytest.approx(LlamaRotaryEmbedding(config).attention_scaling, abs=1e-12)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (
            {"rope_type": "dynamic", "factor": 2.0},
            "rope_type 'dynamic' is not supported; use one of default, linear",
        ),
        ({"rope_type": "linear"}, "rope_type 'linear' needs factor"),
        ({"type": "yarn", "factor": 2.0}, "rope_type 'yarn' needs original_max_position_embeddings"),
        (
            {"rope_type": "linear", "factor": 2.0, "beta_fast": 32},
            "rope_type 'linear' does not know beta_fast",
        ),
        ({"rope_type": "default", "rope_theta": 5.0}, "rope_theta 5.0 contradicts the model's 10000.0"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor other than 1.0"),
    ],
)
def test_a_scaling_that_cannot_be_honoured_is_an_error_naming_the_key(scaling, message):
    with pytest.raises(ValueError, match=message):
        rope_tables(torch.arange(3), 8, 10_000.0, scaling)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rope_equals_hugging_face_forward_and_backward(dtype):
    query_THD = torch.randn(11, 6, 16, dtype=dtype, requires_grad=True)
    key_TGD = torch.randn(11, 2, 16, dtype=dtype, requires_grad=True)
    cos_TD, sin_TD = rope_tables(torch.tensor([0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 5]), 16, 10_000.0)
    mine = rope(query_THD, key_TGD, cos_TD, sin_TD)
    theirs = apply_rotary_pos_emb(query_THD.float(), key_TGD.float(), cos_TD, sin_TD, unsqueeze_dim=1)
    upstream = [torch.randn_like(x) for x in mine]
    inputs = query_THD, key_TGD
    mine_grads = torch.autograd.grad(mine, inputs, upstream)
    their_grads = torch.autograd.grad(theirs, inputs, [x.float() for x in upstream])
    for got, expected in zip((*mine, *mine_grads), (*theirs, *their_grads), strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected.to(dtype), rtol=1e-6, atol=1e-6)


def test_rope_makes_scores_depend_on_distance_alone_and_keeps_norms():
    query_THD, key_TGD = torch.randn(1, 1, 32).expand(40, 1, 32), torch.randn(1, 1, 32).expand(40, 1, 32)
    rotated_query, rotated_key = rope(query_THD, key_TGD, *rope_tables(torch.arange(40), 32, 10_000.0))
    scores = rotated_query[:, 0] @ rotated_key[:, 0].T
    for distance in (0, 1, 13):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rotated_query.norm(dim=-1), query_THD.norm(dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (7, 24), (3, 5, 65)])
def test_rms_norm_equals_hugging_face_bit_for_bit(dtype, shape):
    x = (torch.randn(shape) * 3).to(dtype).requires_grad_()
    theirs = LlamaRMSNorm(shape[-1], eps=1e-5).to(dtype)
    torch.nn.init.normal_(theirs.weight)
    upstream = torch.randn_like(x)
    mine = rms_norm(x, theirs.weight, 1e-5)
    assert torch.equal(mine, theirs(x))
    inputs = x, theirs.weight
    expected = torch.autograd.grad(theirs(x), inputs, upstream)
    assert all(map(torch.equal, torch.autograd.grad(mine, inputs, upstream), expected))


def test_rms_norm_of_large_bf16_values_does_not_overflow_or_lose_the_mean():
    x = torch.full((1, 64), 3e4, dtype=torch.float16)  # squares exceed fp16
    torch.testing.assert_close(rms_norm(x, torch.ones(64, dtype=torch.float16), 1e-6), torch.ones_like(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_equals_the_llama_block(dtype):
    block = LlamaMLP(LlamaConfig(hidden_size=12, intermediate_size=20, num_attention_heads=1)).to(dtype)
    x = torch.randn(4, 3, 12, dtype=dtype, requires_grad=True)
    fused = torch.cat((block.gate_proj.weight, block.up_proj.weight))
    mine = block.down_proj(swiglu(x @ fused.T))
    torch.testing.assert_close(mine, block(x))
    torch.testing.assert_close(*(torch.autograd.grad(y.float().square().sum(), x)[0] for y in (mine, block(x))))
