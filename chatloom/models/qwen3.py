"""Qwen3 (Yang et al. 2025, section 2): Qwen2's layers without biases; queries and keys are normalised per head.

Worth knowing: a head is 128 channels wide whatever the model's width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from chatloom.models import llama, qwen2
from chatloom.nn.attention import Attention
from chatloom.nn.norms import RMSNorm


@dataclass(frozen=True)
class Config(qwen2.Config):
    """Sizes of a Qwen3."""

    attention_bias: bool = False

    MODEL_TYPE: ClassVar[str] = "qwen3"
    ARCHITECTURE: ClassVar[str] = "Qwen3ForCausalLM"
    KEYS: ClassVar[Mapping[str, str]] = {**qwen2.Config.KEYS, "attention_bias": "attention_bias"}
    ABSENT_HEAD_WIDTH: ClassVar[int | None] = 128


def normalised(config: Any) -> dict[str, Any]:
    """What Qwen3 adds to a layer's attention."""
    return {
        "query_norm": RMSNorm(config.head_width, epsilon=config.norm_epsilon),
        "key_norm": RMSNorm(config.head_width, epsilon=config.norm_epsilon),
        "output_bias": config.attention_bias,
    }


class Model(qwen2.Model):
    """Qwen3 wired from `nn`."""

    def attention(self, layer: int, **options: Any) -> Attention:
        """Qwen2's, with normalised queries and keys."""
        return super().attention(layer, **normalised(self.config), **options)


# Yang et al. 2025, table 1.
SIZES = {
    "mini": Config(),
    "0.6B": Config(151_936, 40_960, 28, 1024, 16, 8, 3072, own_head_width=128),
    "1.7B": Config(151_936, 40_960, 28, 2048, 16, 8, 6144),
    "4B": Config(151_936, 40_960, 36, 2560, 32, 8, 9728, own_head_width=128),
    "8B": Config(151_936, 40_960, 36, 4096, 32, 8, 12_288, tie_embeddings=False),
    "14B": Config(151_936, 40_960, 40, 5120, 40, 8, 17_408, tie_embeddings=False),
    "32B": Config(151_936, 40_960, 64, 5120, 64, 8, 25_600, tie_embeddings=False, own_head_width=128),
}

WEIGHT_NAMES = {
    **llama.WEIGHT_NAMES,
    "model.layers.{layer}.self_attn.q_norm.weight": "blocks.{layer}.attention.query_norm.weight",
    "model.layers.{layer}.self_attn.k_norm.weight": "blocks.{layer}.attention.key_norm.weight",
}
IGNORED = llama.IGNORED
