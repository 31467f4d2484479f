"""Model families, one file each. `FAMILIES` is the whole registry."""

from types import ModuleType
from typing import Any

from chatloom.config import nearest
from chatloom.models import gpt2, llama
from chatloom.models.decoder import Decoder, DecoderConfig, num_parameters
from chatloom.models.heads import RewardModel, ValueModel
from chatloom.models.weights import Joined, expanded

FAMILIES: dict[str, ModuleType] = {"gpt2": gpt2, "llama": llama}

__all__ = [
    "FAMILIES",
    "Decoder",
    "DecoderConfig",
    "RewardModel",
    "ValueModel",
    "build",
    "family",
    "num_parameters",
    "stored_names",
]


def family(name: str) -> ModuleType:
    """The module of a family. Raises ValueError listing those known."""
    if name not in FAMILIES:
        raise ValueError(f"model family {name!r} is unknown{nearest(name, FAMILIES)}")
    return FAMILIES[name]


def build(config: DecoderConfig) -> Decoder:
    """A freshly initialised model for a family's config; draws from torch's generator."""
    for module in FAMILIES.values():
        if isinstance(config, module.Config):
            model: Any = module.Model(config)
            assert isinstance(model, Decoder)
            return model
    raise ValueError(f"{type(config).__module__} is not a model family; known: {', '.join(FAMILIES)}")


def stored_names(model: Decoder) -> dict[str, Joined]:
    """Hugging Face's name of each stored tensor of a model, and the tensors of ours that it holds."""
    for module in FAMILIES.values():
        if isinstance(model.config, module.Config):
            return expanded(module.WEIGHT_NAMES, model.config.num_layers)
    raise ValueError(f"{type(model.config).__module__} is not a model family; known: {', '.join(FAMILIES)}")
