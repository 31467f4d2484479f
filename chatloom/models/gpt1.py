"""GPT (Radford et al. 2018, section 4.1): the Transformer's decoder with a LayerNorm after each residual sum.

Worth knowing: nothing normalises the last layer's output again, and the embedding comes in without a norm either.
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
from chatloom.nn.block import PostNormBlock
from chatloom.nn.feedforward import FeedForward


@dataclass(frozen=True)
class Config(PlainHeads, StoredConfig):
    """Sizes of a GPT."""

    vocab_size: int = 1536
    context_length: int = 256
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_embeddings: bool = True

    MODEL_TYPE: ClassVar[str] = "openai-gpt"
    ARCHITECTURE: ClassVar[str] = "OpenAIGPTLMHeadModel"
    KEYS: ClassVar[Mapping[str, str]] = {
        "vocab_size": "vocab_size",
        "n_positions": "context_length",
        "n_layer": "num_layers",
        "n_embd": "width",
        "n_head": "num_heads",
        "layer_norm_epsilon": "norm_epsilon",
        "initializer_range": "initializer_range",
        "tie_word_embeddings": "tie_embeddings",
    }
    # "gelu" is the tanh form here, and here only.
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"afn": ("gelu",)}
    ABSENT: ClassVar[Mapping[str, Any]] = {"context_length": 512}


class Model(Decoder):
    """GPT wired from `nn`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config: Config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context_length, config.width)
        self.blocks = nn.ModuleList(
            PostNormBlock(
                Attention(config.width, config.num_heads, bias=True),
                FeedForward(config.width, 4 * config.width),
                nn.LayerNorm(config.width, eps=config.norm_epsilon),
                nn.LayerNorm(config.width, eps=config.norm_epsilon),
            )
            for _ in range(config.num_layers)
        )
        self.final_norm = nn.Identity()
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        draw_normal(self, config.initializer_range)


# Radford et al. 2018, section 4.1.
SIZES = {"mini": Config(), "117M": Config(40_478, 512, 12, 768, 12)}

_STORED, _OURS = "transformer.h.{layer}", "blocks.{layer}"
WEIGHT_NAMES: dict[str, str | Joined] = {
    "transformer.tokens_embed.weight": "embedding.weight",
    "transformer.positions_embed.weight": "position_embedding.weight",
    **linear(
        f"{_STORED}.attn.c_attn", *(f"{_OURS}.attention.{part}" for part in ("query", "key", "value")), transpose=True
    ),
    **linear(f"{_STORED}.attn.c_proj", f"{_OURS}.attention.output", transpose=True),
    **linear(f"{_STORED}.ln_1", f"{_OURS}.attention_norm"),
    **linear(f"{_STORED}.mlp.c_fc", f"{_OURS}.feedforward.up", transpose=True),
    **linear(f"{_STORED}.mlp.c_proj", f"{_OURS}.feedforward.down", transpose=True),
    **linear(f"{_STORED}.ln_2", f"{_OURS}.feedforward_norm"),
    "lm_head.weight": "head.weight",
}

IGNORED = (".attn.bias", "position_ids")
