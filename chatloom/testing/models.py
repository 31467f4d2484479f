"""Tiny models with random weights, for tests that need a real forward pass and no training.

Every matrix is drawn, also those that a fresh model starts at zero: a test of the cache against a model whose
attention adds nothing would pass whatever the cache does.
"""

from dataclasses import fields, replace
from typing import Any

import torch

from chatloom.models import family, llama

VOCAB_SIZE = 272  # of `testing.tokenizer.byte_tokenizer`


def tiny_llama(
    seed: int = 0, *, vocab_size: int = VOCAB_SIZE, context_length: int = 64, num_key_value_heads: int = 2
) -> llama.Model:
    """A two-layer LLaMA of width 32 whose logits spread by about 2; the same seed gives the same model."""
    config = llama.Config(
        vocab_size=vocab_size,
        context_length=context_length,
        num_layers=2,
        width=32,
        num_heads=4,
        num_key_value_heads=num_key_value_heads,
        inner_width=64,
    )
    state = torch.get_rng_state()
    model = llama.Model(config)
    torch.set_rng_state(state)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.1 * drawn)
            elif name.startswith(("embedding", "head")):
                parameter.copy_(2 * drawn / config.width**0.5)
            else:
                parameter.copy_(drawn / parameter.shape[1] ** 0.5)
    return model


def tiny_config(name: str, **changes: Any) -> Any:
    """The smallest config of a family that has all its parts: two layers, grouped queries, a window of 5."""
    config = family(name).SIZES["mini"]
    sizes = {
        "vocab_size": 320,
        "context_length": 64,
        "num_layers": 2,
        "width": 32,
        "num_heads": 4,
        "inner_width": 48,
        "num_key_value_heads": 2,
        "rotary_width": 4,
        "tie_embeddings": False,
        "window": 5,
    }
    known = {field.name for field in fields(config)}
    return replace(config, **{size: value for size, value in sizes.items() if size in known} | changes)
