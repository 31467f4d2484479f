"""GPT-BigCode (SantaCoder: Allal et al. 2023; StarCoder: Li et al. 2023): GPT-2 with one key/value head for all.

Worth knowing: multi-query attention (Shazeer 2019) makes the cache as small as it can be. The stored matrix has the
queries, then the one key and the one value; a model with as many key/value heads as heads is refused.
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
    """Sizes of a GPT-BigCode."""

    vocab_size: int = 1536
    context_length: int = 256
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    inner_width: int | None = None  # None: 4 * width
    norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_embeddings: bool = True
    activation: str = "gelu_pytorch_tanh"

    MODEL_TYPE: ClassVar[str] = "gpt_bigcode"
    ARCHITECTURE: ClassVar[str] = "GPTBigCodeForCausalLM"
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
        "multi_query": (True,),
        "scale_attn_weights": (True,),
    }
    ABSENT: ClassVar[Mapping[str, Any]] = {"context_length": 1024}

    @property
    def num_key_value_heads(self) -> int:
        """One for all query heads."""
        return 1


class Model(Decoder):
    """GPT-BigCode wired from `nn`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config: Config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context_length, config.width)
        self.blocks = nn.ModuleList(
            Block(
                Attention(config.width, config.num_heads, num_key_value_heads=1, bias=True),
                FeedForward(config.width, config.inner_width or 4 * config.width, activation=config.activation),
                nn.LayerNorm(config.width, eps=config.norm_epsilon),
                nn.LayerNorm(config.width, eps=config.norm_epsilon),
            )
            for _ in range(config.num_layers)
        )
        self.final_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        draw_normal(self, config.initializer_range)


# Allal et al. 2023, section 4; Li et al. 2023, table 9.
SIZES = {
    "mini": Config(),
    "santacoder-1.1B": Config(49_280, 2048, 24, 2048, 16),
    "starcoder-15.5B": Config(49_152, 8192, 40, 6144, 48),
}

_STORED, _OURS = "transformer.h.{layer}", "blocks.{layer}"
WEIGHT_NAMES: dict[str, str | Joined] = {
    "transformer.wte.weight": "embedding.weight",
    "transformer.wpe.weight": "position_embedding.weight",
    **linear(f"{_STORED}.ln_1", f"{_OURS}.attention_norm"),
    **linear(f"{_STORED}.attn.c_attn", *(f"{_OURS}.attention.{part}" for part in ("query", "key", "value"))),
    **linear(f"{_STORED}.attn.c_proj", f"{_OURS}.attention.output"),
    **linear(f"{_STORED}.ln_2", f"{_OURS}.feedforward_norm"),
    **linear(f"{_STORED}.mlp.c_fc", f"{_OURS}.feedforward.up"),
    **linear(f"{_STORED}.mlp.c_proj", f"{_OURS}.feedforward.down"),
    **linear("transformer.ln_f", "final_norm"),
    "lm_head.weight": "head.weight",
}

IGNORED = (".attn.bias", ".attn.masked_bias")
