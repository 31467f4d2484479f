"""Tiny models, their twins in transformers with the same weights, and adapters that are no longer fresh."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from chatloom import adapters, checkpoint, models
from chatloom.adapters import AdapterConfig
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.models import Decoder, gpt2
from chatloom.testing.models import VOCAB_SIZE, tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

FAMILIES = ("llama", "gpt2")
LORA = AdapterConfig(adapter="lora", adapter_rank=4, adapter_alpha=8)
KINDS: dict[str, AdapterConfig] = {
    "lora": LORA,
    "rslora": AdapterConfig(adapter="lora", adapter_rank=4, adapter_alpha=8, adapter_rslora=True),
    "dora": AdapterConfig(adapter="lora", adapter_rank=4, adapter_alpha=8, adapter_dora=True),
    "prompt": AdapterConfig(adapter="prompt", adapter_tokens=5),
    "prefix": AdapterConfig(adapter="prefix", adapter_tokens=5),
}


def tiny(family: str, seed: int = 0) -> Decoder:
    """A two-layer model of width 32 with every matrix drawn."""
    if family == "llama":
        return tiny_llama(seed).eval()
    torch.manual_seed(seed)
    config = gpt2.Config(VOCAB_SIZE, 64, 2, 32, 4, 64)
    model = gpt2.Model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def chat_format() -> ChatFormat:
    return ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE)


def saved_base(folder: Path, family: str, seed: int = 0) -> Decoder:
    """A model, saved in `folder`."""
    model = tiny(family, seed)
    checkpoint.save_pretrained(folder, model, chat_format())
    return model


def twin(folder: Path) -> Any:
    """The same model in transformers."""
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def adapted(model: Decoder, config: AdapterConfig, *, seed: int = 1, fresh: bool = False) -> Decoder:
    """The model with an adapter on it that changes what it says."""
    torch.manual_seed(seed)
    adapters.attach(model, config, names=models.stored_names(model))
    if not fresh:
        stir(model)
    return model


@torch.no_grad()
def stir(model: torch.nn.Module) -> None:
    """Move what is trained away from where it starts."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = 0.2 if ".B." in name else 0.05
            parameter.add_(scale * torch.randn_like(parameter))


def some_tokens(rows: int = 3, length: int = 17, *, seed: int = 5) -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, (rows, length), generator=torch.Generator().manual_seed(seed))
