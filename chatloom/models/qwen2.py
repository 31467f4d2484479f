"""Qwen2 and Qwen2.5 (Yang et al. 2024, section 2.2): LLaMA's layers with biases on query, key and value.

Worth knowing: the upper layers may be limited to a sliding window, from `window_from_layer` on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from chatloom.models import llama
from chatloom.nn.attention import Attention
from chatloom.nn.cache import Rule


@dataclass(frozen=True)
class Config(llama.Config):
    """Sizes of a Qwen2."""

    rope_theta: float = 1_000_000.0
    norm_epsilon: float = 1e-6
    attention_bias: bool = True
    window: int | None = None
    window_from_layer: int = 28

    MODEL_TYPE: ClassVar[str] = "qwen2"
    ARCHITECTURE: ClassVar[str] = "Qwen2ForCausalLM"
    KEYS: ClassVar[Mapping[str, str]] = {
        **{stored: ours for stored, ours in llama.Config.KEYS.items() if not stored.endswith("_bias")},
        "max_window_layers": "window_from_layer",
    }

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers expects."""
        own = {"use_sliding_window": self.window is not None, "sliding_window": self.window}
        return super().to_huggingface() | own

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        found = super()._fields(data)
        found["window"] = data.get("sliding_window", 4096) if data.get("use_sliding_window") else None
        start = found.get("window_from_layer", cls.window_from_layer)
        for layer, kind in enumerate(data.get("layer_types") or ()):
            if (kind == "sliding_attention") != (found["window"] is not None and layer >= start):
                raise ValueError(f"layer_types[{layer}] is {kind!r}, which max_window_layers={start} does not say")
        return found


class Model(llama.Model):
    """Qwen2 wired from `nn`."""

    def attention(self, layer: int, **options: Any) -> Attention:
        """LLaMA's, with biases on what it reads but not on what it writes."""
        window = self.config.window if layer >= self.config.window_from_layer else None
        return super().attention(layer, **{"output_bias": False, "rule": Rule(window=window), **options})


# Yang et al. 2024, table 1.
SIZES = {
    "mini": Config(),
    "0.5B": Config(151_936, 32_768, 24, 896, 14, 2, 4864),
    "1.5B": Config(151_936, 32_768, 28, 1536, 12, 2, 8960),
    "7B": Config(152_064, 32_768, 28, 3584, 28, 4, 18_944, tie_embeddings=False),
    "72B": Config(152_064, 32_768, 80, 8192, 64, 8, 29_568, norm_epsilon=1e-5, tie_embeddings=False),
}

WEIGHT_NAMES = llama.WEIGHT_NAMES
IGNORED = llama.IGNORED
