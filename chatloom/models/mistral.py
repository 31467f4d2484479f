"""Mistral 7B (Jiang et al. 2023, section 2): LLaMA's layers, where a token sees only a window of those before it.

Worth knowing: what lies before the window still arrives, a layer at a time. The releases since version 0.2 have none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from chatloom.models import llama
from chatloom.nn.attention import Attention
from chatloom.nn.cache import Rule


@dataclass(frozen=True)
class Config(llama.Config):
    """Sizes of a Mistral."""

    tie_embeddings: bool = False
    window: int | None = None  # None: everything before a token is seen, as in the releases since version 0.2

    MODEL_TYPE: ClassVar[str] = "mistral"
    ARCHITECTURE: ClassVar[str] = "MistralForCausalLM"
    KEYS: ClassVar[Mapping[str, str]] = {
        **{stored: ours for stored, ours in llama.Config.KEYS.items() if not stored.endswith("_bias")},
        "sliding_window": "window",
    }
    ABSENT: ClassVar[Mapping[str, Any]] = {**llama.Config.ABSENT, "window": 4096}


class Model(llama.Model):
    """Mistral wired from `nn`."""

    def attention(self, layer: int, **options: Any) -> Attention:
        """LLaMA's, within the window."""
        return super().attention(layer, rule=Rule(window=self.config.window), **options)


# Jiang et al. 2023, table 1.
SIZES = {
    "mini": Config(window=64),
    "7B": Config(32_000, 8192, 32, 4096, 32, 8, 14_336, window=4096),
}

WEIGHT_NAMES = llama.WEIGHT_NAMES
IGNORED = llama.IGNORED
