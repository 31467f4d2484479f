"""The rotary scaling of LLaMA 3, and heads that turn in part."""

import numpy as np
import pytest
import torch

from chatloom.gguf.architectures import ARCHITECTURES
from chatloom.gguf.rope import LLAMA3, llama3_factors, llama3_rope, rope_from


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


def test_a_head_that_turns_in_part_is_for_families_that_know_it() -> None:
    config = {"num_attention_heads": 4, "hidden_size": 32}
    found = rope_from({"glm4.rope.dimension_count": 2}, ARCHITECTURES["glm4"], config, None)
    assert (found["partial_rotary_factor"], found["head_dim"]) == (0.25, 8)
    with pytest.raises(ValueError, match=r"dimension_count is 2, and a head is 8 wide"):
        rope_from({"llama.rope.dimension_count": 2}, ARCHITECTURES["llama"], config, None)
