"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm before each half, GELU, biases, tied head.

Worth knowing: the residual projections start smaller by 1/sqrt(2 * layers) (section 2.3), and the stored matrices
are (inputs, outputs) with query, key and value in one.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from chatloom.models.decoder import Decoder
from chatloom.models.initialise import draw_normal
from chatloom.models.weights import Joined, linear
from chatloom.nn.attention import Attention
from chatloom.nn.block import Block
from chatloom.nn.feedforward import FeedForward


@dataclass(frozen=True)
class Config:
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

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads}")

    @property
    def num_key_value_heads(self) -> int:
        """GPT-2 has as many key/value heads as query heads."""
        return self.num_heads

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.width // self.num_heads

    def to_huggingface(self) -> dict[str, Any]:
        """`config.json` of `GPT2LMHeadModel`."""
        return {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "vocab_size": self.vocab_size,
            "n_positions": self.context_length,
            "n_layer": self.num_layers,
            "n_embd": self.width,
            "n_head": self.num_heads,
            "n_inner": self.inner_width,
            "layer_norm_epsilon": self.norm_epsilon,
            "initializer_range": self.initializer_range,
            "tie_word_embeddings": self.tie_embeddings,
            "activation_function": "gelu_new",
        }

    @staticmethod
    def from_huggingface(data: dict[str, Any]) -> "Config":
        """Read a `config.json`. Raises ValueError for a feature that is not here."""
        unsupported = {
            "activation_function": (data.get("activation_function", "gelu_new"), ("gelu_new", "gelu_pytorch_tanh")),
            "scale_attn_by_inverse_layer_idx": (data.get("scale_attn_by_inverse_layer_idx", False), (False,)),
            "scale_attn_weights": (data.get("scale_attn_weights", True), (True,)),
        }
        for name, (given, allowed) in unsupported.items():
            if given not in allowed:
                raise ValueError(f"a gpt2 with {name}={given!r} is not supported; allowed: {allowed}")
        return Config(
            vocab_size=data["vocab_size"],
            context_length=data.get("n_positions", 1024),
            num_layers=data.get("n_layer", 12),
            width=data.get("n_embd", 768),
            num_heads=data.get("n_head", 12),
            inner_width=data.get("n_inner"),
            norm_epsilon=data.get("layer_norm_epsilon", 1e-5),
            initializer_range=data.get("initializer_range", 0.02),
            tie_embeddings=data.get("tie_word_embeddings", True),
        )


class Model(Decoder):
    """GPT-2 wired from `nn`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config: Config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context_length, config.width)
        self.rotary = None
        self.blocks = nn.ModuleList(
            Block(
                Attention(config.width, config.num_heads, bias=True),
                FeedForward(config.width, config.inner_width or 4 * config.width),
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
