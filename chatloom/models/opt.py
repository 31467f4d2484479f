"""OPT (Zhang et al. 2022, section 2.1), so OPT-IML and Galactica: GPT-3's layers with ReLU.

Worth knowing: the first two rows of the position embedding belong to no token. The 350M release has its norms after
the residual sums and a narrower embedding, as no other has, and is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from chatloom.models.decoder import Decoder
from chatloom.models.initialise import draw_normal
from chatloom.models.stored_config import PlainHeads, StoredConfig
from chatloom.models.weights import Joined, linear
from chatloom.nn.attention import Attention
from chatloom.nn.block import Block
from chatloom.nn.feedforward import FeedForward

_OFFSET = 2


@dataclass(frozen=True)
class Config(PlainHeads, StoredConfig):
    """Sizes of an OPT."""

    vocab_size: int = 1536
    context_length: int = 256
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    inner_width: int = 512
    activation: str = "relu"
    bias: bool = True
    norm_weights: bool = True
    initializer_range: float = 0.02
    tie_embeddings: bool = True

    MODEL_TYPE: ClassVar[str] = "opt"
    ARCHITECTURE: ClassVar[str] = "OPTForCausalLM"
    KEYS: ClassVar[Mapping[str, str]] = {
        "vocab_size": "vocab_size",
        "max_position_embeddings": "context_length",
        "num_hidden_layers": "num_layers",
        "hidden_size": "width",
        "num_attention_heads": "num_heads",
        "ffn_dim": "inner_width",
        "activation_function": "activation",
        "enable_bias": "bias",
        "layer_norm_elementwise_affine": "norm_weights",
        "init_std": "initializer_range",
        "tie_word_embeddings": "tie_embeddings",
    }
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "do_layer_norm_before": (True,),
        "_remove_final_layer_norm": (False,),
    }
    REQUIRED: ClassVar[tuple[str, ...]] = (*StoredConfig.REQUIRED, "context_length", "inner_width")

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers expects."""
        return super().to_huggingface() | {"word_embed_proj_dim": self.width}

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        found = super()._fields(data)
        if data.get("word_embed_proj_dim") not in (None, found["width"]):
            raise ValueError(
                f"an opt with word_embed_proj_dim={data['word_embed_proj_dim']} (OPT-350M) is not supported; "
                f"allowed: hidden_size ({found['width']})"
            )
        return found


class Model(Decoder):
    """OPT wired from `nn`."""

    position_offset = _OFFSET

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config: Config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context_length + _OFFSET, config.width)
        self.blocks = nn.ModuleList(
            Block(
                Attention(config.width, config.num_heads, bias=config.bias),
                FeedForward(config.width, config.inner_width, bias=config.bias, activation=config.activation),
                nn.LayerNorm(config.width, elementwise_affine=config.norm_weights),
                nn.LayerNorm(config.width, elementwise_affine=config.norm_weights),
            )
            for _ in range(config.num_layers)
        )
        self.final_norm = nn.LayerNorm(config.width, elementwise_affine=config.norm_weights)
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        draw_normal(self, config.initializer_range)


# Zhang et al. 2022, table 1 (without 350M, see above).
SIZES = {
    "mini": Config(),
    "125M": Config(50_272, 2048, 12, 768, 12, 3072),
    "1.3B": Config(50_272, 2048, 24, 2048, 32, 8192),
    "2.7B": Config(50_272, 2048, 32, 2560, 32, 10_240),
    "6.7B": Config(50_272, 2048, 32, 4096, 32, 16_384),
    "13B": Config(50_272, 2048, 40, 5120, 40, 20_480),
    "30B": Config(50_272, 2048, 48, 7168, 56, 28_672),
    "66B": Config(50_272, 2048, 64, 9216, 72, 36_864),
    "175B": Config(50_272, 2048, 96, 12_288, 96, 49_152),
}

_STORED, _OURS = "model.decoder.layers.{layer}", "blocks.{layer}"
WEIGHT_NAMES: dict[str, str | Joined] = {
    "model.decoder.embed_tokens.weight": "embedding.weight",
    "model.decoder.embed_positions.weight": "position_embedding.weight",
    **linear(f"{_STORED}.self_attn_layer_norm", f"{_OURS}.attention_norm"),
    **linear(f"{_STORED}.self_attn.q_proj", f"{_OURS}.attention.query"),
    **linear(f"{_STORED}.self_attn.k_proj", f"{_OURS}.attention.key"),
    **linear(f"{_STORED}.self_attn.v_proj", f"{_OURS}.attention.value"),
    **linear(f"{_STORED}.self_attn.out_proj", f"{_OURS}.attention.output"),
    **linear(f"{_STORED}.final_layer_norm", f"{_OURS}.feedforward_norm"),
    **linear(f"{_STORED}.fc1", f"{_OURS}.feedforward.up"),
    **linear(f"{_STORED}.fc2", f"{_OURS}.feedforward.down"),
    **linear("model.decoder.final_layer_norm", "final_norm"),
    "lm_head.weight": "head.weight",
}

IGNORED: tuple[str, ...] = ()
