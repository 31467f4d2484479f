"""Qwen3-MoE (Yang et al. 2025, section 2): Qwen3's attention, and many small experts of which eight serve a token.

Worth knowing: every layer has experts here; a release that keeps some layers dense is refused, and so is a window.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from chatloom.models import llama, mixtral, qwen3
from chatloom.models.weights import Joined
from chatloom.nn.attention import Attention
from chatloom.nn.experts import Experts


@dataclass(frozen=True)
class Config(mixtral.Config):
    """Sizes of a Qwen3-MoE; `inner_width` is an expert's."""

    norm_epsilon: float = 1e-6
    num_experts: int = 128
    experts_per_token: int = 8
    renormalise: bool = True

    MODEL_TYPE: ClassVar[str] = "qwen3_moe"
    ARCHITECTURE: ClassVar[str] = "Qwen3MoeForCausalLM"
    KEYS: ClassVar[Mapping[str, str]] = {
        **{
            stored: ours
            for stored, ours in llama.Config.KEYS.items()
            if ours not in ("inner_width", "feedforward_bias")
        },
        "moe_intermediate_size": "inner_width",
        "num_experts": "num_experts",
        "num_experts_per_tok": "experts_per_token",
        "norm_topk_prob": "renormalise",
        "router_z_loss_coef": "router_z",
    }
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **llama.Config.FIXED,
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([], None),
        "use_sliding_window": (False,),
    }
    ABSENT: ClassVar[Mapping[str, Any]] = {"norm_epsilon": 1e-6, "tie_embeddings": False, "renormalise": False}
    ABSENT_THETA: ClassVar[float] = 10_000.0

    @classmethod
    def from_huggingface(cls, data: dict[str, Any]) -> Self:
        """Read a `config.json`; transformers 5 writes `num_local_experts`, the releases have `num_experts`."""
        return super().from_huggingface({"num_experts": data.get("num_local_experts", 128), **data})


class Model(mixtral.Model):
    """Qwen3-MoE wired from `nn`."""

    def attention(self, layer: int, **options: Any) -> Attention:
        """Qwen3's."""
        return super().attention(layer, **qwen3.normalised(self.config), **options)

    def feedforward(self, layer: int) -> nn.Module:
        """The experts."""
        config = self.config
        return Experts(
            config.width,
            config.inner_width,
            num_experts=config.num_experts,
            experts_per_token=config.experts_per_token,
            renormalise=config.renormalise,
        )


# Yang et al. 2025, table 2.
SIZES = {
    "mini": Config(inner_width=64, num_experts=16, experts_per_token=4, load_balancing=0.01, router_z=0.001),
    "30B-A3B": Config(151_936, 40_960, 48, 2048, 32, 4, 768, own_head_width=128, load_balancing=0.001),
    "235B-A22B": Config(151_936, 40_960, 94, 4096, 64, 4, 1536, own_head_width=128, load_balancing=0.001),
}

_STORED, _OURS = "model.layers.{layer}.mlp", "blocks.{layer}.feedforward"
WEIGHT_NAMES: dict[str, str | Joined] = {
    **{stored: ours for stored, ours in qwen3.WEIGHT_NAMES.items() if ".mlp." not in stored},
    f"{_STORED}.gate.weight": f"{_OURS}.router.weight",
    f"{_STORED}.experts.{{expert}}.gate_proj.weight": f"{_OURS}.experts.{{expert}}.gate.weight",
    f"{_STORED}.experts.{{expert}}.up_proj.weight": f"{_OURS}.experts.{{expert}}.up.weight",
    f"{_STORED}.experts.{{expert}}.down_proj.weight": f"{_OURS}.experts.{{expert}}.down.weight",
}
IGNORED = llama.IGNORED
