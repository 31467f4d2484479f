"""CodeGen (Nijkamp et al. 2022, section 2.2): GPT-J's layers, with query, value and key in one stored matrix.

Worth knowing: that matrix is stored as it lay on four accelerators, each with its share of query, value and key, in
this order. transformers has no sequence classifier for CodeGen, so a reward model of it opens here alone.
"""

from dataclasses import dataclass
from typing import ClassVar

from chatloom.models import gptj
from chatloom.models.weights import Joined


@dataclass(frozen=True)
class Config(gptj.Config):
    """Sizes of a CodeGen; num_heads is a multiple of 4."""

    MODEL_TYPE: ClassVar[str] = "codegen"
    ARCHITECTURE: ClassVar[str] = "CodeGenForCausalLM"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_heads % 4:
            raise ValueError(f"num_heads is {self.num_heads}; a codegen needs a multiple of 4, as it is stored")


class Model(gptj.Model):
    """CodeGen wired from `nn`."""


# Nijkamp et al. 2022, table 6.
SIZES = {
    "mini": Config(),
    "350M": Config(51_200, 2048, 20, 1024, 16, 32),
    "2.7B": Config(51_200, 2048, 32, 2560, 32, 64),
    "6.1B": Config(51_200, 2048, 33, 4096, 16, 64),
    "16.1B": Config(51_200, 2048, 34, 6144, 24, 64),
}

_QKV = tuple(f"blocks.{{layer}}.attention.{part}.weight" for part in ("query", "value", "key"))
WEIGHT_NAMES: dict[str, str | Joined] = {
    **{
        stored: ours
        for stored, ours in gptj.WEIGHT_NAMES.items()
        if not any(part in stored for part in ("q_proj", "k_proj", "v_proj"))
    },
    "transformer.h.{layer}.attn.qkv_proj.weight": Joined(_QKV, groups=4),
}

IGNORED = (*gptj.IGNORED, ".attn.causal_mask")
