"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm before each half, GELU, biases, tied head.

Worth knowing: the residual projections start smaller by 1/sqrt(2 * layers) (section 2.3), and the stored matrices
are (inputs, outputs) with query, key and value in one. DialoGPT is a GPT-2, and Cerebras-GPT one with the exact GELU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from chatloom.models.decoder import Decoder
from chatloom.models.initialise import draw_normal
from chatloom.models.stored_config import PlainHeads, StoredConfig
from chatloom.models.weights import Joined, linear
from chatloom.nn.attention import Attention
from chatloom.nn.block import Block
from chatloom.nn.feedforward import FeedForward


@dataclass(frozen=True)
class Config(PlainHeads, StoredConfig):
    """Sizes of a GPT-2; the defaults are the smallest of the paper."""

    vocab_size: int = 50_257
    context_length: int = 1024
    num_layers: int = 12
    width: int = 768
    num_heads: int = 12
    inner_width: int | None = None  # None: 4 * width
    norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_embeddings: bool = True
    activation: str = "gelu_new"

    MODEL_TYPE: ClassVar[str] = "gpt2"
    ARCHITECTURE: ClassVar[str] = "GPT2LMHeadModel"
    KEYS: ClassVar[Mapping[str, str]] = {
        "vocab_size": "vocab_size",
        "n_positions": "context_length",
        "n_layer": "num_layers",
        "n_embd": "width",
        "n_head": "num_heads",
        "n_inner": "inner_width",
        "layer_norm_epsilon": "norm_epsilon",
        "initializer_range": "initializer_range",
        "tie_word_embeddings": "tie_embeddings",
        "activation_function": "activation",
    }
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "scale_attn_by_inverse_layer_idx": (False,),
        "scale_attn_weights": (True,),
    }


class Model(Decoder):
    """GPT-2 wired from `nn`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config: Config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context_length, config.width)
        self.blocks = nn.ModuleList(
            Block(
                Attention(config.width, config.num_heads, bias=True),
                FeedForward(config.width, config.inner_width or 4 * config.width, activation=config.activation),
                nn.LayerNorm(config.width, eps=config.norm_epsilon),
                nn.LayerNorm(config.width, eps=config.norm_epsilon),
            )
            for _ in range(config.num_layers)
        )
        self.final_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        draw_normal(self, config.initializer_range)


# Radford et al. 2019, table 2 (names by the parameter counts of the released weights).
SIZES = {
    "mini": Config(1536, 256, 4, 128, 4),
    "124M": Config(),
    "355M": Config(num_layers=24, width=1024, num_heads=16),
    "774M": Config(num_layers=36, width=1280, num_heads=20),
    "1558M": Config(num_layers=48, width=1600, num_heads=25),
}


_BLOCK, _OURS = "transformer.h.{layer}", "blocks.{layer}"
WEIGHT_NAMES: dict[str, str | Joined] = {
    "transformer.wte.weight": "embedding.weight",
    "transformer.wpe.weight": "position_embedding.weight",
    **linear(f"{_BLOCK}.ln_1", f"{_OURS}.attention_norm"),
    **linear(
        f"{_BLOCK}.attn.c_attn", *(f"{_OURS}.attention.{part}" for part in ("query", "key", "value")), transpose=True
    ),
    **linear(f"{_BLOCK}.attn.c_proj", f"{_OURS}.attention.output", transpose=True),
    **linear(f"{_BLOCK}.ln_2", f"{_OURS}.feedforward_norm"),
    **linear(f"{_BLOCK}.mlp.c_fc", f"{_OURS}.feedforward.up", transpose=True),
    **linear(f"{_BLOCK}.mlp.c_proj", f"{_OURS}.feedforward.down", transpose=True),
    **linear("transformer.ln_f", "final_norm"),
    "lm_head.weight": "head.weight",
}

IGNORED = (".attn.bias", ".attn.masked_bias")
