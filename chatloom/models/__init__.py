"""Model families, one file each. `FAMILIES` is the whole registry."""

from types import ModuleType

from chatloom.config import nearest
from chatloom.models import (
    bloom,
    codegen,
    gemma2,
    gemma3,
    glm4,
    gpt1,
    gpt2,
    gpt_bigcode,
    gpt_neo,
    gptj,
    llama,
    mistral,
    mixtral,
    neox,
    opt,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    stablelm,
)
from chatloom.models.decoder import Decoder, DecoderConfig, num_parameters
from chatloom.models.heads import RewardModel, ValueModel
from chatloom.models.weights import Joined, expanded

# By the `model_type` of a `config.json`, oldest first.
FAMILIES: dict[str, ModuleType] = {
    "openai-gpt": gpt1,
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "gptj": gptj,
    "codegen": codegen,
    "gpt_neox": neox,
    "opt": opt,
    "bloom": bloom,
    "gpt_bigcode": gpt_bigcode,
    "llama": llama,
    "mistral": mistral,
    "mixtral": mixtral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "qwen3_moe": qwen3_moe,
    "phi3": phi3,
    "stablelm": stablelm,
    "glm4": glm4,
    "gemma2": gemma2,
    "gemma3_text": gemma3,
}

__all__ = [
    "FAMILIES",
    "Decoder",
    "DecoderConfig",
    "RewardModel",
    "ValueModel",
    "build",
    "family",
    "module_of",
    "num_parameters",
    "stored_names",
]


def family(name: str) -> ModuleType:
    """The module of a family. Raises ValueError listing those known."""
    if name not in FAMILIES:
        known = f"known: {', '.join(sorted(FAMILIES))}"
        hint = nearest(name, FAMILIES)
        raise ValueError(f"model family {name!r} is unknown{hint}" + ("" if known in hint else f"; {known}"))
    return FAMILIES[name]


def module_of(config: DecoderConfig) -> ModuleType:
    """The family whose `Config` it is; a family that inherits another's is not that other."""
    for module in FAMILIES.values():
        if type(config) is module.Config:
            return module
    raise ValueError(f"{type(config).__module__} is not a model family; known: {', '.join(FAMILIES)}")


def build(config: DecoderConfig) -> Decoder:
    """A freshly initialised model for a family's config; draws from torch's generator."""
    model: Decoder = module_of(config).Model(config)
    return model


def stored_names(model: Decoder) -> dict[str, Joined]:
    """Hugging Face's name of each stored tensor of a model, and the tensors of ours that it holds."""
    return expanded(module_of(model.config).WEIGHT_NAMES, model.config)
