"""Mixtral (Jiang et al. 2024, section 2): Mistral with eight experts in place of each feed-forward part, two a token.

Worth knowing: `load_balancing` and `router_z` are what training adds to the loss of a token (`nn/experts.py`); both
are off in a released config unless it sets `output_router_logits`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from chatloom.models import llama, mistral
from chatloom.models.weights import Joined
from chatloom.nn.experts import Experts


@dataclass(frozen=True)
class Config(mistral.Config):
    """Sizes of a Mixtral."""

    rope_theta: float = 1_000_000.0
    num_experts: int = 8
    experts_per_token: int = 2
    load_balancing: float = 0.0
    router_z: float = 0.0

    MODEL_TYPE: ClassVar[str] = "mixtral"
    ARCHITECTURE: ClassVar[str] = "MixtralForCausalLM"
    KEYS: ClassVar[Mapping[str, str]] = {
        **mistral.Config.KEYS,
        "num_local_experts": "num_experts",
        "num_experts_per_tok": "experts_per_token",
        "router_z_loss_coef": "router_z",
    }
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {**llama.Config.FIXED, "router_jitter_noise": (0.0,)}
    ABSENT: ClassVar[Mapping[str, Any]] = {"norm_epsilon": 1e-5, "tie_embeddings": False}
    ABSENT_THETA: ClassVar[float] = 1_000_000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise ValueError(f"experts_per_token is {self.experts_per_token}; there are {self.num_experts} experts")

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers expects."""
        balance = {"router_aux_loss_coef": self.load_balancing, "output_router_logits": self.load_balancing > 0}
        return super().to_huggingface() | balance

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        balance = data.get("router_aux_loss_coef", 0.001) if data.get("output_router_logits") else 0.0
        return {**super()._fields(data), "load_balancing": balance}


class Model(mistral.Model):
    """Mixtral wired from `nn`."""

    def feedforward(self, layer: int) -> nn.Module:
        """The experts."""
        config = self.config
        return Experts(
            config.width,
            config.inner_width,
            num_experts=config.num_experts,
            experts_per_token=config.experts_per_token,
        )


# Jiang et al. 2024, table 1, and the 8x22B release.
SIZES = {
    "mini": Config(load_balancing=0.01, router_z=0.001, inner_width=192),
    "8x7B": Config(32_000, 32_768, 32, 4096, 32, 8, 14_336, load_balancing=0.02),
    "8x22B": Config(32_768, 65_536, 56, 6144, 48, 8, 16_384, load_balancing=0.001),
}

_STORED, _OURS = "model.layers.{layer}.block_sparse_moe", "blocks.{layer}.feedforward"
WEIGHT_NAMES: dict[str, str | Joined] = {
    **{stored: ours for stored, ours in llama.WEIGHT_NAMES.items() if ".mlp." not in stored},
    f"{_STORED}.gate.weight": f"{_OURS}.router.weight",
    f"{_STORED}.experts.{{expert}}.w1.weight": f"{_OURS}.experts.{{expert}}.gate.weight",
    f"{_STORED}.experts.{{expert}}.w3.weight": f"{_OURS}.experts.{{expert}}.up.weight",
    f"{_STORED}.experts.{{expert}}.w2.weight": f"{_OURS}.experts.{{expert}}.down.weight",
}
IGNORED = llama.IGNORED
