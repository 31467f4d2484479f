"""LLaMA (Touvron et al. 2023): rotary positions, RMSNorm, SwiGLU, no biases; grouped queries since LLaMA 2.

Worth knowing: the output projections of attention and feed-forward start at zero, so a fresh model is its embedding
and every layer earns its place; the other matrices start with variance 1/inputs. Alpaca, Vicuna and SmolLM2 are this
family, and InternLM is with `attention_bias`.

Later families of this make (Mistral, Qwen, Phi-3, ...) inherit from this file and override the part of the wiring that
they change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import nn

from chatloom.models.decoder import Decoder
from chatloom.models.longer import SCALINGS
from chatloom.models.stored_config import StoredConfig
from chatloom.models.weights import Joined
from chatloom.nn.attention import Attention
from chatloom.nn.block import Block
from chatloom.nn.feedforward import SwiGLU
from chatloom.nn.norms import RMSNorm
from chatloom.nn.positions import Rotary
from chatloom.nn.rope_scaling import KINDS, RopeScaling


@dataclass(frozen=True)
class Config(StoredConfig):
    """Sizes of a LLaMA; the defaults are the quickstart's."""

    vocab_size: int = 1536
    context_length: int = 256
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    num_key_value_heads: int = 4
    inner_width: int = 384
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = True
    own_head_width: int | None = None  # None: width / num_heads
    rope_scaling: RopeScaling | None = None
    attention_bias: bool = False
    feedforward_bias: bool = False

    MODEL_TYPE: ClassVar[str] = "llama"
    ARCHITECTURE: ClassVar[str] = "LlamaForCausalLM"
    KEYS: ClassVar[Mapping[str, str]] = {
        "vocab_size": "vocab_size",
        "max_position_embeddings": "context_length",
        "num_hidden_layers": "num_layers",
        "hidden_size": "width",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_key_value_heads",
        "intermediate_size": "inner_width",
        "rms_norm_eps": "norm_epsilon",
        "tie_word_embeddings": "tie_embeddings",
        "attention_bias": "attention_bias",
        "mlp_bias": "feedforward_bias",
    }
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"hidden_act": ("silu",)}
    ABSENT: ClassVar[Mapping[str, Any]] = {"norm_epsilon": 1e-6, "tie_embeddings": False}
    REQUIRED: ClassVar[tuple[str, ...]] = (*StoredConfig.REQUIRED, "context_length", "inner_width")
    ROPE_SCALINGS: ClassVar[tuple[str, ...]] = SCALINGS
    # What transformers takes where a `config.json` says nothing.
    ABSENT_THETA: ClassVar[float] = 10_000.0
    ABSENT_HEAD_WIDTH: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if (self.own_head_width is None and self.width % self.num_heads) or self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"width {self.width} must be a multiple of num_heads {self.num_heads}, and num_heads of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.own_head_width or self.width // self.num_heads

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers expects."""
        scaling = {"rope_type": "default"} if self.rope_scaling is None else self.rope_scaling.to_dict()
        return super().to_huggingface() | {
            "head_dim": self.head_width,
            "rope_theta": self.rope_theta,
            "rope_scaling": None if self.rope_scaling is None else scaling,  # where transformers 4 looks
            "rope_parameters": {**scaling, "rope_theta": self.rope_theta},
        }

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        found = super()._fields(data)
        found["num_key_value_heads"] = found.get("num_key_value_heads") or found["num_heads"]
        head_width = data.get("head_dim") or cls.ABSENT_HEAD_WIDTH
        if head_width and head_width * found["num_heads"] != found["width"]:
            found["own_head_width"] = head_width
        rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
        found["rope_theta"] = float(rope.get("rope_theta") or data.get("rope_theta") or cls.ABSENT_THETA)
        found["rope_scaling"] = rope_scaling(rope)
        return found


def rope_scaling(rope: dict[str, Any]) -> RopeScaling | None:
    """The scaling in a `rope_scaling` or `rope_parameters` entry, or None. ValueError for a kind that is not here."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    known = {field.name for field in fields(RopeScaling)} - {"rope_type"}
    given: dict[str, Any] = {name: rope[name] for name in known if rope.get(name) is not None}
    if kind in KINDS and kind != "longrope" and "factor" not in given:
        raise ValueError(f"rope scaling {kind!r} needs factor")
    tables = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return RopeScaling(kind, **{"factor": 1.0, **given, **tables})


class Model(Decoder):
    """LLaMA wired from `nn`."""

    config: Any

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.rotary = self.make_rotary()
        self.blocks = nn.ModuleList(self.block(layer) for layer in range(config.num_layers))
        self.final_norm = self.norm()
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        self.initialise()

    def make_rotary(self) -> Rotary:
        """The tables that turn queries and keys."""
        config = self.config
        return Rotary(config.head_width, config.context_length, theta=config.rope_theta, scaling=config.rope_scaling)

    def block(self, layer: int) -> nn.Module:
        """One layer."""
        return Block(self.attention(layer), self.feedforward(layer), self.norm(), self.norm())

    def norm(self) -> nn.Module:
        """A norm over the model's width."""
        return RMSNorm(self.config.width, epsilon=self.config.norm_epsilon)

    def attention(self, layer: int, **options: Any) -> Attention:
        """A layer's attention; `options` are what a later family changes."""
        config = self.config
        sizes = {"num_key_value_heads": config.num_key_value_heads, "head_width": config.head_width}
        return Attention(config.width, config.num_heads, **{**sizes, "bias": config.attention_bias, **options})

    def feedforward(self, layer: int) -> nn.Module:
        """A layer's feed-forward part."""
        return SwiGLU(self.config.width, self.config.inner_width, bias=self.config.feedforward_bias)

    def initialise(self) -> None:
        """Draw fresh weights from torch's generator."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=self.config.width**-0.5)
        for module in self.modules():
            if isinstance(module, Attention):
                nn.init.zeros_(module.output.weight)
            if isinstance(module, SwiGLU):
                nn.init.zeros_(module.down.weight)


_META_31 = RopeScaling(
    "llama3", factor=8.0, original_max_position_embeddings=8192, low_freq_factor=1.0, high_freq_factor=4.0
)
# Touvron et al. 2023, table 2 (LLaMA 1); Touvron et al. 2023b, table 1 (2-); Grattafiori et al. 2024, table 3 (3.1-);
# Ben Allal et al. 2025 (SmolLM2); and the quickstart's own.
SIZES = {
    "mini": Config(),
    "7B": Config(32_000, 2048, 32, 4096, 32, 32, 11_008, tie_embeddings=False),
    "13B": Config(32_000, 2048, 40, 5120, 40, 40, 13_824, tie_embeddings=False),
    "33B": Config(32_000, 2048, 60, 6656, 52, 52, 17_920, tie_embeddings=False),
    "65B": Config(32_000, 2048, 80, 8192, 64, 64, 22_016, tie_embeddings=False),
    "2-7B": Config(32_000, 4096, 32, 4096, 32, 32, 11_008, tie_embeddings=False),
    "2-13B": Config(32_000, 4096, 40, 5120, 40, 40, 13_824, tie_embeddings=False),
    "2-70B": Config(32_000, 4096, 80, 8192, 64, 8, 28_672, tie_embeddings=False),
    "3.1-8B": Config(128_256, 131_072, 32, 4096, 32, 8, 14_336, 5e5, tie_embeddings=False, rope_scaling=_META_31),
    "3.1-70B": Config(128_256, 131_072, 80, 8192, 64, 8, 28_672, 5e5, tie_embeddings=False, rope_scaling=_META_31),
    "3.1-405B": Config(128_256, 131_072, 126, 16_384, 128, 8, 53_248, 5e5, tie_embeddings=False, rope_scaling=_META_31),
    "smollm2-135M": Config(49_152, 8192, 30, 576, 9, 3, 1536, 1e5),
    "smollm2-360M": Config(49_152, 8192, 32, 960, 15, 5, 2560, 1e5),
    "smollm2-1.7B": Config(49_152, 8192, 24, 2048, 32, 32, 8192, 130_000.0),
}

_STORED, _OURS = "model.layers.{layer}", "blocks.{layer}"
WEIGHT_NAMES: dict[str, str | Joined] = {
    "model.embed_tokens.weight": "embedding.weight",
    f"{_STORED}.input_layernorm.weight": f"{_OURS}.attention_norm.weight",
    f"{_STORED}.self_attn.q_proj.weight": f"{_OURS}.attention.query.weight",
    f"{_STORED}.self_attn.k_proj.weight": f"{_OURS}.attention.key.weight",
    f"{_STORED}.self_attn.v_proj.weight": f"{_OURS}.attention.value.weight",
    f"{_STORED}.self_attn.o_proj.weight": f"{_OURS}.attention.output.weight",
    f"{_STORED}.self_attn.q_proj.bias": f"{_OURS}.attention.query.bias",
    f"{_STORED}.self_attn.k_proj.bias": f"{_OURS}.attention.key.bias",
    f"{_STORED}.self_attn.v_proj.bias": f"{_OURS}.attention.value.bias",
    f"{_STORED}.self_attn.o_proj.bias": f"{_OURS}.attention.output.bias",
    f"{_STORED}.post_attention_layernorm.weight": f"{_OURS}.feedforward_norm.weight",
    f"{_STORED}.mlp.gate_proj.weight": f"{_OURS}.feedforward.gate.weight",
    f"{_STORED}.mlp.up_proj.weight": f"{_OURS}.feedforward.up.weight",
    f"{_STORED}.mlp.down_proj.weight": f"{_OURS}.feedforward.down.weight",
    f"{_STORED}.mlp.gate_proj.bias": f"{_OURS}.feedforward.gate.bias",
    f"{_STORED}.mlp.up_proj.bias": f"{_OURS}.feedforward.up.bias",
    f"{_STORED}.mlp.down_proj.bias": f"{_OURS}.feedforward.down.bias",
    "model.norm.weight": "final_norm.weight",
    "lm_head.weight": "head.weight",
}

IGNORED = ("rotary_emb.inv_freq",)
