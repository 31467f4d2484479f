"""Stable LM 2 (Bellagente et al. 2024, section 3): LLaMA's layers with LayerNorm and a quarter of each head turned.

Worth knowing: query, key and value may have biases. The 12B release normalises queries and keys with weights of its own
for every head and has both halves of a layer side by side. StableLM-alpha is a GPT-NeoX.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from chatloom.models import llama
from chatloom.models.weights import Joined
from chatloom.nn.attention import Attention
from chatloom.nn.block import Block, ParallelBlock
from chatloom.nn.norms import LayerNormPerHead
from chatloom.nn.positions import Rotary

_RENAMED = ("rms_norm_eps", "attention_bias", "mlp_bias")


@dataclass(frozen=True)
class Config(llama.Config):
    """Sizes of a Stable LM."""

    tie_embeddings: bool = False
    rotary_share: float = 0.25
    parallel: bool = False
    head_norms: bool = False

    MODEL_TYPE: ClassVar[str] = "stablelm"
    ARCHITECTURE: ClassVar[str] = "StableLmForCausalLM"
    KEYS: ClassVar[Mapping[str, str]] = {
        **{stored: ours for stored, ours in llama.Config.KEYS.items() if stored not in _RENAMED},
        "layer_norm_eps": "norm_epsilon",
        "use_qkv_bias": "attention_bias",
        "use_parallel_residual": "parallel",
        "qk_layernorm": "head_norms",
    }
    ABSENT: ClassVar[Mapping[str, Any]] = {"norm_epsilon": 1e-5, "tie_embeddings": False}

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers expects."""
        stored = super().to_huggingface()
        rope = {**stored["rope_parameters"], "partial_rotary_factor": self.rotary_share}
        return stored | {"partial_rotary_factor": self.rotary_share, "rope_parameters": rope}

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        rope = data.get("rope_parameters") or {}
        share = rope.get("partial_rotary_factor") or data.get("partial_rotary_factor", 0.25)
        return {**super()._fields(data), "rotary_share": share}


class Model(llama.Model):
    """Stable LM wired from `nn`."""

    def make_rotary(self) -> Rotary:
        """For the first channels of a head."""
        config = self.config
        turned = int(config.head_width * config.rotary_share)
        return Rotary(turned, config.context_length, theta=config.rope_theta, scaling=config.rope_scaling)

    def norm(self) -> nn.Module:
        """LayerNorm."""
        return nn.LayerNorm(self.config.width, eps=self.config.norm_epsilon)

    def block(self, layer: int) -> nn.Module:
        """LLaMA's, or both halves side by side behind one norm."""
        if self.config.parallel:
            return ParallelBlock(self.attention(layer), self.feedforward(layer), self.norm())
        return Block(self.attention(layer), self.feedforward(layer), self.norm(), self.norm())

    def attention(self, layer: int, **options: Any) -> Attention:
        """LLaMA's; what it writes has no bias."""
        config = self.config
        if config.head_norms:
            options["query_norm"] = LayerNormPerHead(config.num_heads, config.head_width, epsilon=config.norm_epsilon)
            options["key_norm"] = LayerNormPerHead(
                config.num_key_value_heads, config.head_width, epsilon=config.norm_epsilon
            )
        return super().attention(layer, output_bias=False, **options)


# Bellagente et al. 2024, table 2 (2-1.6B), and the model cards of the others.
SIZES = {
    "mini": Config(),
    "2-1.6B": Config(100_352, 4096, 24, 2048, 32, 32, 5632, attention_bias=True),
    "2-12B": Config(100_352, 4096, 40, 5120, 32, 8, 13_824, parallel=True, head_norms=True),
    "3B-4e1t": Config(50_304, 4096, 32, 2560, 32, 32, 6912),
}

_STORED, _OURS = "model.layers.{layer}.self_attn", "blocks.{layer}.attention"
WEIGHT_NAMES: dict[str, str | Joined] = {
    **llama.WEIGHT_NAMES,
    "model.layers.{layer}.input_layernorm.bias": "blocks.{layer}.attention_norm.bias",
    "model.layers.{layer}.post_attention_layernorm.bias": "blocks.{layer}.feedforward_norm.bias",
    "model.norm.bias": "final_norm.bias",
    f"{_STORED}.q_layernorm.norms.{{head}}.weight": f"{_OURS}.query_norm.norms.{{head}}.weight",
    f"{_STORED}.k_layernorm.norms.{{head}}.weight": f"{_OURS}.key_norm.norms.{{head}}.weight",
}
IGNORED = llama.IGNORED
