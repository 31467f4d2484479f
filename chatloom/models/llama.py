"""LLaMA (Touvron et al. 2023): rotary positions, RMSNorm, SwiGLU, no biases; grouped queries since LLaMA 2.

Worth knowing: the output projections of attention and feed-forward start at zero, so a fresh model is its embedding
and every layer earns its place; the other matrices start with variance 1/inputs.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from chatloom.models.decoder import Decoder
from chatloom.nn.attention import Attention
from chatloom.nn.block import Block
from chatloom.nn.feedforward import SwiGLU
from chatloom.nn.norms import RMSNorm
from chatloom.nn.positions import Rotary


@dataclass(frozen=True)
class Config:
    """Sizes of a LLaMA; the defaults are the quickstart's."""

    vocab_size: int = 1536
    context_length: int = 256
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    num_key_value_heads: int = 4
    inner_width: int = 384
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"width {self.width} must be a multiple of num_heads {self.num_heads}, and num_heads of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.width // self.num_heads

    def to_huggingface(self) -> dict[str, Any]:
        """`config.json` of `LlamaForCausalLM`."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.context_length,
            "num_hidden_layers": self.num_layers,
            "hidden_size": self.width,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_width,
            "intermediate_size": self.inner_width,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "rms_norm_eps": self.norm_epsilon,
            "tie_word_embeddings": self.tie_embeddings,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
        }

    @staticmethod
    def from_huggingface(data: dict[str, Any]) -> "Config":
        """Read a `config.json`. Raises ValueError for a feature that is not here yet."""
        rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        unsupported = {
            "rope_type": (rope_type, "default"),
            "hidden_act": (data.get("hidden_act", "silu"), "silu"),
            "attention_bias": (data.get("attention_bias", False), False),
            "mlp_bias": (data.get("mlp_bias", False), False),
        }
        for name, (given, allowed) in unsupported.items():
            if given != allowed:
                raise ValueError(f"a llama with {name}={given!r} is not supported; allowed: {allowed!r}")
        num_heads = data["num_attention_heads"]
        head_width = data.get("head_dim") or data["hidden_size"] // num_heads
        if head_width * num_heads != data["hidden_size"]:
            raise ValueError(f"head_dim {head_width} x {num_heads} heads must be hidden_size {data['hidden_size']}")
        return Config(
            vocab_size=data["vocab_size"],
            context_length=data["max_position_embeddings"],
            num_layers=data["num_hidden_layers"],
            width=data["hidden_size"],
            num_heads=num_heads,
            num_key_value_heads=data.get("num_key_value_heads") or num_heads,
            inner_width=data["intermediate_size"],
            rope_theta=float(rope.get("rope_theta") or data.get("rope_theta") or 10_000.0),
            norm_epsilon=data.get("rms_norm_eps", 1e-6),
            tie_embeddings=data.get("tie_word_embeddings", False),
        )


class Model(Decoder):
    """LLaMA wired from `nn`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config: Config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = None
        self.rotary = Rotary(config.head_width, config.context_length, theta=config.rope_theta)
        self.blocks = nn.ModuleList(
            Block(
                Attention(config.width, config.num_heads, num_key_value_heads=config.num_key_value_heads),
                SwiGLU(config.width, config.inner_width),
                RMSNorm(config.width, epsilon=config.norm_epsilon),
                RMSNorm(config.width, epsilon=config.norm_epsilon),
            )
            for _ in range(config.num_layers)
        )
        self.final_norm = RMSNorm(config.width, epsilon=config.norm_epsilon)
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        self.initialise()

    def initialise(self) -> None:
        """Draw fresh weights from torch's generator."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.normal_(self.embedding.weight, std=self.config.width**-0.5)
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.zeros_(block.attention.output.weight)
            assert isinstance(block.feedforward, SwiGLU)
            nn.init.zeros_(block.feedforward.down.weight)


# Touvron et al. 2023, table 2 (LLaMA 1) and the quickstart's own.
SIZES = {
    "mini": Config(),
    "7B": Config(32_000, 2048, 32, 4096, 32, 32, 11_008, tie_embeddings=False),
    "13B": Config(32_000, 2048, 40, 5120, 40, 40, 13_824, tie_embeddings=False),
    "33B": Config(32_000, 2048, 60, 6656, 52, 52, 17_920, tie_embeddings=False),
    "65B": Config(32_000, 2048, 80, 8192, 64, 64, 22_016, tie_embeddings=False),
}

WEIGHT_NAMES = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.layers.{layer}.input_layernorm.weight": "blocks.{layer}.attention_norm.weight",
    "model.layers.{layer}.self_attn.q_proj.weight": "blocks.{layer}.attention.query.weight",
    "model.layers.{layer}.self_attn.k_proj.weight": "blocks.{layer}.attention.key.weight",
    "model.layers.{layer}.self_attn.v_proj.weight": "blocks.{layer}.attention.value.weight",
    "model.layers.{layer}.self_attn.o_proj.weight": "blocks.{layer}.attention.output.weight",
    "model.layers.{layer}.post_attention_layernorm.weight": "blocks.{layer}.feedforward_norm.weight",
    "model.layers.{layer}.mlp.gate_proj.weight": "blocks.{layer}.feedforward.gate.weight",
    "model.layers.{layer}.mlp.up_proj.weight": "blocks.{layer}.feedforward.up.weight",
    "model.layers.{layer}.mlp.down_proj.weight": "blocks.{layer}.feedforward.down.weight",
    "model.norm.weight": "final_norm.weight",
    "lm_head.weight": "head.weight",
}

IGNORED = ("rotary_emb.inv_freq",)
