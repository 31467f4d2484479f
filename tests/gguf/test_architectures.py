"""Tensors that lie differently in GGUF, the rotary scaling of LLaMA 3, and the names of architectures."""

import numpy as np
import pytest
import torch

from chatloom.gguf import architectures
from chatloom.gguf.architectures import ARCHITECTURES, LLAMA3, llama3_factors, llama3_rope


def test_the_scaling_of_llama_3_is_transformers_own() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, **LLAMA3}
    config = transformers.LlamaConfig(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=131_072, rope_parameters=rope
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500_000.0 ** (-np.arange(0, 64, 2) / 64)
    factors = llama3_factors(64, 500_000.0, 32.0)
    assert np.allclose(plain / factors, scaled.numpy(), rtol=1e-5)
    assert (factors.min(), factors.max()) == (1.0, 32.0)
    found = llama3_rope(factors, {"rope_theta": 500_000.0})
    assert found == rope
    with pytest.raises(ValueError, match="not LLaMA"):
        llama3_rope(factors[::-1].copy(), {"rope_theta": 500_000.0})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_lies_differently_comes_back(name: str) -> None:
    """Every change of a tensor is undone by its opposite."""
    architecture = ARCHITECTURES[name]
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "n_head": 4}
    for stored, shape in (
        ("model.layers.0.self_attn.q_proj.weight", (32, 24)),
        ("model.layers.0.self_attn.k_proj.weight", (16, 24)),
        ("model.layers.0.self_attn.q_proj.bias", (32,)),
        ("model.layers.0.input_layernorm.weight", (24,)),
        ("transformer.h.0.attn.c_attn.weight", (24, 72)),
        ("gpt_neox.layers.0.attention.query_key_value.weight", (96, 24)),
        ("transformer.h.0.self_attention.query_key_value.bias", (96,)),
    ):
        tensor = torch.arange(float(np.prod(shape))).reshape(shape)
        there = architecture.to_gguf(stored, tensor, config)
        assert torch.equal(architecture.from_gguf(stored, there, config), tensor)


def test_families_without_a_name_list_those_with_one() -> None:
    with pytest.raises(ValueError, match="a gpt3 cannot be written as GGUF; known: llama"):
        architectures.name_of("gpt3")
    assert architectures.name_of("mistral") == "llama"
