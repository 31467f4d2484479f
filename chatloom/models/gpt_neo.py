"""GPT-Neo (Black et al. 2021): GPT-2's layers, where every second one sees only a window, as in GPT-3.

Worth knowing: GPT-3 alternates dense and locally banded layers (Brown et al. 2020, section 2.1); here the band is 256
tokens. Scores are not divided by sqrt(D), and query, key and value have no bias.
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
from chatloom.nn.cache import Rule
from chatloom.nn.feedforward import FeedForward


@dataclass(frozen=True)
class Config(PlainHeads, StoredConfig):
    """Sizes of a GPT-Neo."""

    vocab_size: int = 1536
    context_length: int = 256
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    inner_width: int | None = None  # None: 4 * width
    window: int = 256
    window_every: int = 2  # every second layer sees the window alone; 0: none
    norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_embeddings: bool = True

    MODEL_TYPE: ClassVar[str] = "gpt_neo"
    ARCHITECTURE: ClassVar[str] = "GPTNeoForCausalLM"
    KEYS: ClassVar[Mapping[str, str]] = {
        "vocab_size": "vocab_size",
        "max_position_embeddings": "context_length",
        "num_layers": "num_layers",
        "hidden_size": "width",
        "num_heads": "num_heads",
        "intermediate_size": "inner_width",
        "window_size": "window",
        "layer_norm_epsilon": "norm_epsilon",
        "initializer_range": "initializer_range",
        "tie_word_embeddings": "tie_embeddings",
    }
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"activation_function": ("gelu_new", "gelu_pytorch_tanh")}
    ABSENT: ClassVar[Mapping[str, Any]] = {"context_length": 2048}

    def local(self, layer: int) -> bool:
        """Whether a layer sees the window alone."""
        return self.window_every > 0 and (layer + 1) % self.window_every == 0

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers expects."""
        kinds = ["local" if self.local(layer) else "global" for layer in range(self.num_layers)]
        return super().to_huggingface() | {"attention_types": [[kinds, 1]], "attention_layers": kinds}

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        found = super()._fields(data)
        types = data.get("attention_types") or [[["global", "local"], found["num_layers"] // 2]]
        kinds = [kind for pattern, times in types for _ in range(times) for kind in pattern]
        found["window_every"] = kinds.index("local") + 1 if "local" in kinds else 0
        every = found["window_every"]
        if kinds != ["local" if every and (layer + 1) % every == 0 else "global" for layer in range(len(kinds))]:
            raise ValueError(f"attention_types {types} is not supported; allowed: local at every n-th layer")
        return found


class Model(Decoder):
    """GPT-Neo wired from `nn`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config: Config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context_length, config.width)
        self.blocks = nn.ModuleList(
            Block(
                Attention(
                    config.width,
                    config.num_heads,
                    output_bias=True,
                    rule=Rule(scale=1.0, window=config.window if config.local(layer) else None),
                ),
                FeedForward(config.width, config.inner_width or 4 * config.width),
                nn.LayerNorm(config.width, eps=config.norm_epsilon),
                nn.LayerNorm(config.width, eps=config.norm_epsilon),
            )
            for layer in range(config.num_layers)
        )
        self.final_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        draw_normal(self, config.initializer_range)


# Black et al. 2021, the released models.
SIZES = {
    "mini": Config(window=64),
    "125M": Config(50_257, 2048, 12, 768, 12),
    "1.3B": Config(50_257, 2048, 24, 2048, 16),
    "2.7B": Config(50_257, 2048, 32, 2560, 20),
}

_STORED, _OURS = "transformer.h.{layer}", "blocks.{layer}"
WEIGHT_NAMES: dict[str, str | Joined] = {
    "transformer.wte.weight": "embedding.weight",
    "transformer.wpe.weight": "position_embedding.weight",
    **linear(f"{_STORED}.ln_1", f"{_OURS}.attention_norm"),
    f"{_STORED}.attn.attention.q_proj.weight": f"{_OURS}.attention.query.weight",
    f"{_STORED}.attn.attention.k_proj.weight": f"{_OURS}.attention.key.weight",
    f"{_STORED}.attn.attention.v_proj.weight": f"{_OURS}.attention.value.weight",
    **linear(f"{_STORED}.attn.attention.out_proj", f"{_OURS}.attention.output"),
    **linear(f"{_STORED}.ln_2", f"{_OURS}.feedforward_norm"),
    **linear(f"{_STORED}.mlp.c_fc", f"{_OURS}.feedforward.up"),
    **linear(f"{_STORED}.mlp.c_proj", f"{_OURS}.feedforward.down"),
    **linear("transformer.ln_f", "final_norm"),
    "lm_head.weight": "head.weight",
}

IGNORED = (".attn.attention.bias", ".attn.attention.masked_bias")
