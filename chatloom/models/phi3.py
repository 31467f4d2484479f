"""Phi-3 (Abdin et al. 2024, section 2): LLaMA's layers with query, key and value stored as one matrix, gate and up too.

Worth knowing: the releases for 4k tokens have a sliding window. Those for 128k tokens divide the rotary frequencies by
tables of their own (`longrope`), one up to the 4k tokens first trained on and another beyond; the context here is those
4k, where all of a row is turned alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from chatloom.models import llama, mistral
from chatloom.models.weights import Joined
from chatloom.nn.positions import Rotary


@dataclass(frozen=True)
class Config(mistral.Config):
    """Sizes of a Phi-3."""

    rotary_share: float = 1.0

    MODEL_TYPE: ClassVar[str] = "phi3"
    ARCHITECTURE: ClassVar[str] = "Phi3ForCausalLM"
    KEYS: ClassVar[Mapping[str, str]] = {**mistral.Config.KEYS, "partial_rotary_factor": "rotary_share"}
    ABSENT: ClassVar[Mapping[str, Any]] = {"norm_epsilon": 1e-5, "tie_embeddings": False}
    ROPE_SCALINGS: ClassVar[tuple[str, ...]] = ("ntk",)  # its class knows no other scaling than longrope

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers expects."""
        stored = super().to_huggingface()
        rope = {**stored["rope_parameters"], "partial_rotary_factor": self.rotary_share}
        stored |= {"rope_parameters": rope, "original_max_position_embeddings": self.context_length}
        if self.rope_scaling is not None:
            tables = {name: list(rope[name]) for name in ("short_factor", "long_factor")}
            stored["rope_parameters"] |= tables
            stored["rope_scaling"] = {"type": "longrope", **tables}
            stored["max_position_embeddings"] = round(self.context_length * self.rope_scaling.factor)
        return stored

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        rope = {**(data.get("rope_parameters") or data.get("rope_scaling") or {})}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind in ("su", "yarn"):  # what the first releases called it
            kind = "longrope"
        if kind not in ("default", "longrope"):
            raise ValueError(f"a phi3 with rope scaling {kind!r} is not supported; allowed: default, longrope")
        original = data.get("original_max_position_embeddings", 4096)
        rope |= {"rope_type": kind, "original_max_position_embeddings": original}
        found = super()._fields({**data, "rope_parameters": rope})
        found["rotary_share"] = rope.get("partial_rotary_factor") or data.get("partial_rotary_factor", 1.0)
        if found["rope_scaling"] is not None:
            factor = rope.get("factor") or found["context_length"] / original
            found["rope_scaling"] = replace(found["rope_scaling"], factor=float(factor))
            found["context_length"] = min(original, found["context_length"])
        return found


class Model(mistral.Model):
    """Phi-3 wired from `nn`."""

    def make_rotary(self) -> Rotary:
        """For the first channels of a head (Phi-4-mini) or all."""
        config = self.config
        turned = int(config.head_width * config.rotary_share)
        return Rotary(turned, config.context_length, theta=config.rope_theta, scaling=config.rope_scaling)


# Abdin et al. 2024, section 2 (mini and medium; small has other layers).
SIZES = {
    "mini": Config(),
    "mini-4k": Config(32_064, 4096, 32, 3072, 32, 32, 8192, window=2047),
    "medium-4k": Config(32_064, 4096, 40, 5120, 40, 10, 17_920, window=2047),
}

_STORED, _OURS = "model.layers.{layer}", "blocks.{layer}"
_SEPARATE = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", ".bias")
WEIGHT_NAMES: dict[str, str | Joined] = {
    **{stored: ours for stored, ours in llama.WEIGHT_NAMES.items() if not any(part in stored for part in _SEPARATE)},
    f"{_STORED}.self_attn.qkv_proj.weight": Joined(
        tuple(f"{_OURS}.attention.{part}.weight" for part in ("query", "key", "value"))
    ),
    f"{_STORED}.mlp.gate_up_proj.weight": Joined(
        (f"{_OURS}.feedforward.gate.weight", f"{_OURS}.feedforward.up.weight")
    ),
}
IGNORED = llama.IGNORED
