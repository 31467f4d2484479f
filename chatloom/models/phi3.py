"""Phi-3 (Abdin et al. 2024, section 2): LLaMA's layers with query, key and value stored as one matrix, gate and up too.

Worth knowing: the releases for 128k tokens scale their rotary positions by a table of their own (`longrope`), which is
refused; those for 4k tokens have a sliding window.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from chatloom.models import llama, mistral
from chatloom.models.weights import Joined


@dataclass(frozen=True)
class Config(mistral.Config):
    """Sizes of a Phi-3."""

    MODEL_TYPE: ClassVar[str] = "phi3"
    ARCHITECTURE: ClassVar[str] = "Phi3ForCausalLM"
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {**llama.Config.FIXED, "partial_rotary_factor": (1.0,)}
    ABSENT: ClassVar[Mapping[str, Any]] = {"norm_epsilon": 1e-5, "tie_embeddings": False}

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers expects."""
        return super().to_huggingface() | {"original_max_position_embeddings": self.context_length}


Model = mistral.Model

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
