"""Gemma 3, text (Gemma Team 2025, section 2): Gemma 2 with normalised queries and keys instead of softcaps.

Worth knowing: five layers that see a window stand between two that see everything. The two kinds turn their queries
and keys by different bases, and only the second kind's angles are scaled for long contexts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from chatloom.models import gemma2, llama
from chatloom.nn.attention import Attention
from chatloom.nn.positions import Angles, Rotary
from chatloom.nn.rope_scaling import RopeScaling


@dataclass(frozen=True)
class Config(gemma2.Config):
    """Sizes of a Gemma 3."""

    rope_theta: float = 1_000_000.0
    window: int = 1024
    full_every: int = 6
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    window_rope_theta: float = 10_000.0

    MODEL_TYPE: ClassVar[str] = "gemma3_text"
    ARCHITECTURE: ClassVar[str] = "Gemma3ForCausalLM"
    CLASSIFIER: ClassVar[str] = "Gemma3TextForSequenceClassification"
    ABSENT: ClassVar[Mapping[str, Any]] = {**gemma2.Config.ABSENT, "window": 4096}

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers expects."""
        stored = super().to_huggingface()
        return stored | {
            "rope_local_base_freq": self.window_rope_theta,
            "rope_parameters": {
                "full_attention": stored["rope_parameters"],
                "sliding_attention": {"rope_type": "default", "rope_theta": self.window_rope_theta},
            },
        }

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        ropes = data.get("rope_parameters") or {}
        flat = {**data, "rope_parameters": ropes.get("full_attention")}
        flat.setdefault("rope_theta", 1_000_000.0)
        local = (ropes.get("sliding_attention") or {}).get("rope_theta") or data.get("rope_local_base_freq", 10_000.0)
        return {**super()._fields(flat), "window_rope_theta": float(local)}


class Model(gemma2.Model):
    """Gemma 3 wired from `nn`."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.window_rotary = Rotary(config.head_width, config.context_length, theta=config.window_rope_theta)

    def angles(self, positions: Tensor) -> list[Angles | None]:
        """Each layer's by what it sees."""
        assert self.rotary is not None
        near, far = self.window_rotary.at(positions), self.rotary.at(positions)
        return [near if self.config.local(layer) else far for layer in range(len(self.blocks))]

    def rotaries(self) -> list[Rotary | None]:
        """Each layer's by what it sees."""
        near, far = self.window_rotary, self.rotary
        return [near if self.config.local(layer) else far for layer in range(len(self.blocks))]

    def attention(self, layer: int, **options: Any) -> Attention:
        """Gemma 2's, with normalised queries and keys."""
        width = self.config.head_width
        return super().attention(layer, query_norm=self.norm(width), key_norm=self.norm(width), **options)


_LONG = RopeScaling("linear", factor=8.0)
# Gemma Team 2025, table 1 (the language models; without their vision encoders).
SIZES = {
    "mini": Config(window=64),
    "1B": Config(262_144, 32_768, 26, 1152, 4, 1, 6912, own_head_width=256, query_scale=256, window=512),
    "4B": Config(262_208, 131_072, 34, 2560, 8, 4, 10_240, own_head_width=256, query_scale=256, rope_scaling=_LONG),
    "12B": Config(262_208, 131_072, 48, 3840, 16, 8, 15_360, own_head_width=256, query_scale=256, rope_scaling=_LONG),
    "27B": Config(262_208, 131_072, 62, 5376, 32, 16, 21_504, own_head_width=128, query_scale=168, rope_scaling=_LONG),
}

WEIGHT_NAMES = {
    **gemma2.WEIGHT_NAMES,
    "model.layers.{layer}.self_attn.q_norm.weight": "blocks.{layer}.attention.query_norm.weight",
    "model.layers.{layer}.self_attn.k_norm.weight": "blocks.{layer}.attention.key_norm.weight",
}
IGNORED = llama.IGNORED
