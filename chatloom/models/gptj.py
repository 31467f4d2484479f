"""GPT-J (Wang and Komatsuzaki 2021): attention and feed-forward side by side behind one LayerNorm.

Worth knowing: rotary positions turn neighbouring channels (2i, 2i + 1), the first `rotary_width` of each head; the
attention has no biases, and the vocabulary projection has one, so it is never tied.
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
from chatloom.nn.block import ParallelBlock
from chatloom.nn.feedforward import FeedForward
from chatloom.nn.positions import Rotary


@dataclass(frozen=True)
class Config(PlainHeads, StoredConfig):
    """Sizes of a GPT-J."""

    vocab_size: int = 1536
    context_length: int = 256
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    rotary_width: int = 16
    inner_width: int | None = None  # None: 4 * width
    norm_epsilon: float = 1e-5
    initializer_range: float = 0.02

    MODEL_TYPE: ClassVar[str] = "gptj"
    ARCHITECTURE: ClassVar[str] = "GPTJForCausalLM"
    KEYS: ClassVar[Mapping[str, str]] = {
        "vocab_size": "vocab_size",
        "n_positions": "context_length",
        "n_layer": "num_layers",
        "n_embd": "width",
        "n_head": "num_heads",
        "rotary_dim": "rotary_width",
        "n_inner": "inner_width",
        "layer_norm_epsilon": "norm_epsilon",
        "initializer_range": "initializer_range",
    }
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "tie_word_embeddings": (False,),
    }
    ABSENT: ClassVar[Mapping[str, Any]] = {"context_length": 2048, "rotary_width": 64}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rotary_width % 2 or not 2 <= self.rotary_width <= self.head_width:
            raise ValueError(
                f"rotary_width is {self.rotary_width}; it must be even and at most a head's width, {self.head_width}"
            )

    @property
    def tie_embeddings(self) -> bool:
        """Never: the vocabulary projection has a bias."""
        return False


class Model(Decoder):
    """GPT-J wired from `nn`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config: Config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.rotary = Rotary(config.rotary_width, config.context_length, interleaved=True)
        self.blocks = nn.ModuleList(
            ParallelBlock(
                Attention(config.width, config.num_heads),
                FeedForward(config.width, config.inner_width or 4 * config.width),
                nn.LayerNorm(config.width, eps=config.norm_epsilon),
            )
            for _ in range(config.num_layers)
        )
        self.final_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.head = nn.Linear(config.width, config.vocab_size)
        draw_normal(self, config.initializer_range)


# Wang and Komatsuzaki 2021.
SIZES = {"mini": Config(), "6B": Config(50_400, 2048, 28, 4096, 16, 64)}

_STORED, _OURS = "transformer.h.{layer}", "blocks.{layer}"
WEIGHT_NAMES: dict[str, str | Joined] = {
    "transformer.wte.weight": "embedding.weight",
    **linear(f"{_STORED}.ln_1", f"{_OURS}.attention_norm"),
    f"{_STORED}.attn.q_proj.weight": f"{_OURS}.attention.query.weight",
    f"{_STORED}.attn.k_proj.weight": f"{_OURS}.attention.key.weight",
    f"{_STORED}.attn.v_proj.weight": f"{_OURS}.attention.value.weight",
    f"{_STORED}.attn.out_proj.weight": f"{_OURS}.attention.output.weight",
    **linear(f"{_STORED}.mlp.fc_in", f"{_OURS}.feedforward.up"),
    **linear(f"{_STORED}.mlp.fc_out", f"{_OURS}.feedforward.down"),
    **linear("transformer.ln_f", "final_norm"),
    **linear("lm_head", "head"),
}

IGNORED = (".attn.bias", ".attn.masked_bias", ".attn.embed_positions")
