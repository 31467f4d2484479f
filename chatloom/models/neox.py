"""GPT-NeoX (Black et al. 2022, section 2.1), so Pythia (Biderman et al. 2023), Dolly 2 and StableLM-alpha.

Worth knowing: attention and feed-forward read the same residual stream, each through its own LayerNorm; rotary
positions turn the first quarter of every head; query, key and value of a head are stored together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from chatloom.models.decoder import Decoder
from chatloom.models.initialise import draw_normal
from chatloom.models.llama import rope_scaling
from chatloom.models.longer import SCALINGS
from chatloom.models.stored_config import PlainHeads, StoredConfig
from chatloom.models.weights import Joined, linear
from chatloom.nn.attention import Attention
from chatloom.nn.block import Block, ParallelBlock
from chatloom.nn.feedforward import FeedForward
from chatloom.nn.positions import Rotary
from chatloom.nn.rope_scaling import RopeScaling


@dataclass(frozen=True)
class Config(PlainHeads, StoredConfig):
    """Sizes of a GPT-NeoX."""

    vocab_size: int = 1536
    context_length: int = 256
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    inner_width: int = 512
    rotary_share: float = 0.25
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    parallel: bool = True
    activation: str = "gelu"
    attention_bias: bool = True
    norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_embeddings: bool = False

    MODEL_TYPE: ClassVar[str] = "gpt_neox"
    ARCHITECTURE: ClassVar[str] = "GPTNeoXForCausalLM"
    KEYS: ClassVar[Mapping[str, str]] = {
        "vocab_size": "vocab_size",
        "max_position_embeddings": "context_length",
        "num_hidden_layers": "num_layers",
        "hidden_size": "width",
        "num_attention_heads": "num_heads",
        "intermediate_size": "inner_width",
        "rotary_pct": "rotary_share",
        "rotary_emb_base": "rope_theta",
        "use_parallel_residual": "parallel",
        "hidden_act": "activation",
        "attention_bias": "attention_bias",
        "layer_norm_eps": "norm_epsilon",
        "initializer_range": "initializer_range",
        "tie_word_embeddings": "tie_embeddings",
    }
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    REQUIRED: ClassVar[tuple[str, ...]] = (*StoredConfig.REQUIRED, "context_length", "inner_width")
    ROPE_SCALINGS: ClassVar[tuple[str, ...]] = SCALINGS

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers expects."""
        scaling = {"rope_type": "default"} if self.rope_scaling is None else self.rope_scaling.to_dict()
        rope = {**scaling, "rope_theta": self.rope_theta, "partial_rotary_factor": self.rotary_share}
        return super().to_huggingface() | {
            "rope_scaling": None if self.rope_scaling is None else scaling,
            "rope_parameters": rope,
        }

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        found = super()._fields(data)
        rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
        found["rope_theta"] = float(rope.get("rope_theta") or found.get("rope_theta", 10_000.0))
        found["rotary_share"] = rope.get("partial_rotary_factor", found.get("rotary_share", 0.25))
        found["rope_scaling"] = rope_scaling(rope)
        return found


class Model(Decoder):
    """GPT-NeoX wired from `nn`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config: Config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.rotary = Rotary(
            int(config.head_width * config.rotary_share),
            config.context_length,
            theta=config.rope_theta,
            scaling=config.rope_scaling,
        )
        kind = ParallelBlock if config.parallel else Block
        self.blocks = nn.ModuleList(
            kind(
                Attention(config.width, config.num_heads, bias=config.attention_bias),
                FeedForward(config.width, config.inner_width, activation=config.activation),
                nn.LayerNorm(config.width, eps=config.norm_epsilon),
                nn.LayerNorm(config.width, eps=config.norm_epsilon),
            )
            for _ in range(config.num_layers)
        )
        self.final_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        draw_normal(self, config.initializer_range)


# Black et al. 2022, table 1 (20B); Biderman et al. 2023, table 1 (Pythia).
SIZES = {
    "mini": Config(),
    "20B": Config(50_432, 2048, 44, 6144, 64, 24_576),
    "pythia-70M": Config(50_304, 2048, 6, 512, 8, 2048),
    "pythia-160M": Config(50_304, 2048, 12, 768, 12, 3072),
    "pythia-410M": Config(50_304, 2048, 24, 1024, 16, 4096),
    "pythia-1B": Config(50_304, 2048, 16, 2048, 8, 8192),
    "pythia-1.4B": Config(50_304, 2048, 24, 2048, 16, 8192),
    "pythia-2.8B": Config(50_304, 2048, 32, 2560, 32, 10_240),
    "pythia-6.9B": Config(50_432, 2048, 32, 4096, 32, 16_384),
    "pythia-12B": Config(50_688, 2048, 36, 5120, 40, 20_480),
}

_STORED, _OURS = "gpt_neox.layers.{layer}", "blocks.{layer}"
WEIGHT_NAMES: dict[str, str | Joined] = {
    "gpt_neox.embed_in.weight": "embedding.weight",
    **linear(f"{_STORED}.input_layernorm", f"{_OURS}.attention_norm"),
    **linear(
        f"{_STORED}.attention.query_key_value",
        *(f"{_OURS}.attention.{part}" for part in ("query", "key", "value")),
        groups="heads",
    ),
    **linear(f"{_STORED}.attention.dense", f"{_OURS}.attention.output"),
    **linear(f"{_STORED}.post_attention_layernorm", f"{_OURS}.feedforward_norm"),
    **linear(f"{_STORED}.mlp.dense_h_to_4h", f"{_OURS}.feedforward.up"),
    **linear(f"{_STORED}.mlp.dense_4h_to_h", f"{_OURS}.feedforward.down"),
    **linear("gpt_neox.final_layer_norm", "final_norm"),
    "embed_out.weight": "head.weight",
}

IGNORED = (".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq")
