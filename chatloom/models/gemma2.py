"""Gemma 2 (Gemma Team 2024, section 2): norms before and after each half, GEGLU, softcapped scores and logits.

Worth knowing: every second layer sees only a window; the embedding is scaled by sqrt(width) on its way in; RMSNorm
multiplies by 1 + weight; scores are divided by the root of `query_scale`, which need not be the head's width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from chatloom.models import llama
from chatloom.models.initialise import draw_normal
from chatloom.models.stored_config import full_attention_every
from chatloom.models.weights import Joined
from chatloom.nn.attention import Attention
from chatloom.nn.block import Block
from chatloom.nn.cache import Rule
from chatloom.nn.feedforward import SwiGLU
from chatloom.nn.norms import RMSNorm


@dataclass(frozen=True)
class Config(llama.Config):
    """Sizes of a Gemma 2."""

    norm_epsilon: float = 1e-6
    window: int = 4096
    full_every: int = 2  # every second layer sees everything
    query_scale: int = 32
    attention_softcap: float | None = 50.0
    logit_softcap: float | None = 30.0
    initializer_range: float = 0.02

    MODEL_TYPE: ClassVar[str] = "gemma2"
    ARCHITECTURE: ClassVar[str] = "Gemma2ForCausalLM"
    KEYS: ClassVar[Mapping[str, str]] = {
        **{stored: ours for stored, ours in llama.Config.KEYS.items() if stored != "mlp_bias"},
        "sliding_window": "window",
        "query_pre_attn_scalar": "query_scale",
        "attn_logit_softcapping": "attention_softcap",
        "final_logit_softcapping": "logit_softcap",
        "initializer_range": "initializer_range",
    }
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hidden_activation": ("gelu_pytorch_tanh",),
        "use_bidirectional_attention": (None, False),
    }
    ABSENT: ClassVar[Mapping[str, Any]] = {"tie_embeddings": True, "query_scale": 256}
    ABSENT_HEAD_WIDTH: ClassVar[int | None] = 256

    def local(self, layer: int) -> bool:
        """Whether a layer sees the window alone."""
        return (layer + 1) % self.full_every != 0

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers expects."""
        kinds = ["sliding_attention" if self.local(layer) else "full_attention" for layer in range(self.num_layers)]
        return super().to_huggingface() | {"layer_types": kinds}

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {**super()._fields(data), "full_every": full_attention_every(data, cls.full_every)}


class Model(llama.Model):
    """Gemma 2 wired from `nn`."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.embedding_scale = config.width**0.5
        self.logit_softcap = config.logit_softcap

    def norm(self, width: int | None = None) -> nn.Module:
        """1 + weight, over the model's width or a head's."""
        return RMSNorm(width or self.config.width, epsilon=self.config.norm_epsilon, offset=1.0)

    def block(self, layer: int) -> nn.Module:
        """A norm before and after each half."""
        return Block(
            self.attention(layer),
            self.feedforward(layer),
            self.norm(),
            self.norm(),
            attention_output_norm=self.norm(),
            feedforward_output_norm=self.norm(),
        )

    def attention(self, layer: int, **options: Any) -> Attention:
        """LLaMA's, with the family's scores."""
        config = self.config
        rule = Rule(
            scale=config.query_scale**-0.5,
            window=config.window if config.local(layer) else None,
            softcap=config.attention_softcap,
        )
        return super().attention(layer, rule=rule, **options)

    def feedforward(self, layer: int) -> nn.Module:
        """GEGLU."""
        return SwiGLU(self.config.width, self.config.inner_width, activation="gelu_pytorch_tanh")

    def initialise(self) -> None:
        """GPT-2's rule: behind a norm, an output that starts at zero would have an endless gradient."""
        draw_normal(self, self.config.initializer_range)


# Gemma Team 2024, table 1.
SIZES = {
    "mini": Config(window=64),
    "2B": Config(256_000, 8192, 26, 2304, 8, 4, 9216, own_head_width=256, query_scale=256),
    "9B": Config(256_000, 8192, 42, 3584, 16, 8, 14_336, own_head_width=256, query_scale=256),
    "27B": Config(256_000, 8192, 46, 4608, 32, 16, 36_864, own_head_width=128, query_scale=144),
}

_STORED, _OURS = "model.layers.{layer}", "blocks.{layer}"
WEIGHT_NAMES: dict[str, str | Joined] = {
    **llama.WEIGHT_NAMES,
    f"{_STORED}.post_attention_layernorm.weight": f"{_OURS}.attention_output_norm.weight",
    f"{_STORED}.pre_feedforward_layernorm.weight": f"{_OURS}.feedforward_norm.weight",
    f"{_STORED}.post_feedforward_layernorm.weight": f"{_OURS}.feedforward_output_norm.weight",
}
IGNORED = llama.IGNORED
