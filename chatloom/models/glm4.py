"""GLM-4 (GLM Team 2024, section 2; the 0414 releases): LLaMA's parts with norms before and after each half.

Worth knowing: neighbouring channels (2i, 2i + 1) are turned, in the first half of each head; few key/value heads; gate
and up are stored as one matrix.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from chatloom.models import llama
from chatloom.models.initialise import draw_normal
from chatloom.models.weights import Joined
from chatloom.nn.attention import Attention
from chatloom.nn.block import Block
from chatloom.nn.positions import Rotary


@dataclass(frozen=True)
class Config(llama.Config):
    """Sizes of a GLM-4."""

    tie_embeddings: bool = False
    attention_bias: bool = True
    rotary_share: float = 0.5
    initializer_range: float = 0.02

    MODEL_TYPE: ClassVar[str] = "glm4"
    ARCHITECTURE: ClassVar[str] = "Glm4ForCausalLM"
    KEYS: ClassVar[Mapping[str, str]] = {
        **{stored: ours for stored, ours in llama.Config.KEYS.items() if stored != "mlp_bias"},
        "initializer_range": "initializer_range",
    }
    ABSENT: ClassVar[Mapping[str, Any]] = {"norm_epsilon": 1.5625e-7, "tie_embeddings": False}
    ABSENT_HEAD_WIDTH: ClassVar[int | None] = 128

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers expects."""
        stored = super().to_huggingface()
        rope = {**stored["rope_parameters"], "partial_rotary_factor": self.rotary_share}
        return stored | {"partial_rotary_factor": self.rotary_share, "rope_parameters": rope}

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        rope = data.get("rope_parameters") or {}
        share = rope.get("partial_rotary_factor") or data.get("partial_rotary_factor", 0.5)
        return {**super()._fields(data), "rotary_share": share}


class Model(llama.Model):
    """GLM-4 wired from `nn`."""

    def make_rotary(self) -> Rotary:
        """For neighbouring channels of the first part of a head."""
        config = self.config
        turned = int(config.head_width * config.rotary_share)
        return Rotary(
            turned, config.context_length, theta=config.rope_theta, scaling=config.rope_scaling, interleaved=True
        )

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
        """LLaMA's; what it writes has no bias."""
        return super().attention(layer, output_bias=False, **options)

    def initialise(self) -> None:
        """GPT-2's rule: behind a norm, an output that starts at zero would have an endless gradient."""
        draw_normal(self, self.config.initializer_range)


# GLM-4-9B-0414 and 32B-0414, the releases of this layout.
SIZES = {
    "mini": Config(),
    "9B": Config(151_552, 32_768, 40, 4096, 32, 2, 13_696),
    "32B": Config(151_552, 32_768, 61, 6144, 48, 8, 23_040, attention_bias=False),
}

_STORED, _OURS = "model.layers.{layer}", "blocks.{layer}"
WEIGHT_NAMES: dict[str, str | Joined] = {
    **{
        stored: ours
        for stored, ours in llama.WEIGHT_NAMES.items()
        if not any(part in stored for part in ("gate_proj", "up_proj"))
    },
    f"{_STORED}.mlp.gate_up_proj.weight": Joined(
        (f"{_OURS}.feedforward.gate.weight", f"{_OURS}.feedforward.up.weight")
    ),
    f"{_STORED}.post_self_attn_layernorm.weight": f"{_OURS}.attention_output_norm.weight",
    f"{_STORED}.post_mlp_layernorm.weight": f"{_OURS}.feedforward_output_norm.weight",
}
IGNORED = llama.IGNORED
