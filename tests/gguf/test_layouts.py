"""Tensors that lie differently in GGUF."""

import numpy as np
import pytest
import torch

from chatloom.gguf.architectures import ARCHITECTURES


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_what_lies_differently_comes_back(family: str) -> None:
    """Every change of a tensor is undone by its opposite."""
    architecture = ARCHITECTURES[family]
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
