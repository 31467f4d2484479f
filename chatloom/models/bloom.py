"""BLOOM (Scao et al. 2022, section 3.2): ALiBi instead of positions, and a LayerNorm after the embedding.

Worth knowing: a score loses the head's slope for every token of distance (Press et al. 2022), so there is no position
to run out of; the context length is the one trained on. Query, key and value of a head are stored together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from chatloom.models.decoder import Decoder
from chatloom.models.initialise import draw_normal
from chatloom.models.stored_config import PlainHeads, StoredConfig
from chatloom.models.weights import Joined, linear
from chatloom.nn.attention import Attention
from chatloom.nn.block import Block
from chatloom.nn.cache import Rule
from chatloom.nn.feedforward import FeedForward


@dataclass(frozen=True)
class Config(PlainHeads, StoredConfig):
    """Sizes of a BLOOM."""

    vocab_size: int = 1536
    context_length: int = 256
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_embeddings: bool = True

    MODEL_TYPE: ClassVar[str] = "bloom"
    ARCHITECTURE: ClassVar[str] = "BloomForCausalLM"
    KEYS: ClassVar[Mapping[str, str]] = {
        "vocab_size": "vocab_size",
        "seq_length": "context_length",
        "n_layer": "num_layers",
        "hidden_size": "width",
        "n_head": "num_heads",
        "layer_norm_epsilon": "norm_epsilon",
        "initializer_range": "initializer_range",
        "tie_word_embeddings": "tie_embeddings",
    }
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"apply_residual_connection_post_layernorm": (False,)}
    ABSENT: ClassVar[Mapping[str, Any]] = {"context_length": 2048}
    ENDLESS_POSITIONS: ClassVar[bool] = True

    @classmethod
    def from_huggingface(cls, data: dict[str, Any]) -> Self:
        """Read a `config.json`; some releases have the older names of three keys."""
        older = {"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        return super().from_huggingface({older.get(key, key): value for key, value in data.items()})


class Model(Decoder):
    """BLOOM wired from `nn`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config: Config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.embedding_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.blocks = nn.ModuleList(
            Block(
                Attention(config.width, config.num_heads, bias=True, rule=Rule(alibi=True)),
                FeedForward(config.width, 4 * config.width),
                nn.LayerNorm(config.width, eps=config.norm_epsilon),
                nn.LayerNorm(config.width, eps=config.norm_epsilon),
            )
            for _ in range(config.num_layers)
        )
        self.final_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        draw_normal(self, config.initializer_range)


# Scao et al. 2022, table 3.
SIZES = {
    "mini": Config(),
    "560M": Config(250_880, 2048, 24, 1024, 16),
    "1.1B": Config(250_880, 2048, 24, 1536, 16),
    "1.7B": Config(250_880, 2048, 24, 2048, 16),
    "3B": Config(250_880, 2048, 30, 2560, 32),
    "7.1B": Config(250_880, 2048, 30, 4096, 32),
    "176B": Config(250_880, 2048, 70, 14_336, 112),
}

_STORED, _OURS = "transformer.h.{layer}", "blocks.{layer}"
WEIGHT_NAMES: dict[str, str | Joined] = {
    "transformer.word_embeddings.weight": "embedding.weight",
    **linear("transformer.word_embeddings_layernorm", "embedding_norm"),
    **linear(f"{_STORED}.input_layernorm", f"{_OURS}.attention_norm"),
    **linear(
        f"{_STORED}.self_attention.query_key_value",
        *(f"{_OURS}.attention.{part}" for part in ("query", "key", "value")),
        groups="heads",
    ),
    **linear(f"{_STORED}.self_attention.dense", f"{_OURS}.attention.output"),
    **linear(f"{_STORED}.post_attention_layernorm", f"{_OURS}.feedforward_norm"),
    **linear(f"{_STORED}.mlp.dense_h_to_4h", f"{_OURS}.feedforward.up"),
    **linear(f"{_STORED}.mlp.dense_4h_to_h", f"{_OURS}.feedforward.down"),
    **linear("transformer.ln_f", "final_norm"),
    "lm_head.weight": "head.weight",
}

IGNORED: tuple[str, ...] = ()
