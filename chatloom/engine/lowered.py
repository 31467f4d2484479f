"""A model as decoding reads it in a smaller number type: its matrices once in that type, LoRA merged into them.

Each step of decoding reads every matrix for a few tokens, so half the bytes are nearly half the time; casting them anew
in each step, as autocast does with fp32 weights, reads them three times. And LoRA beside each matrix trebles the number
of products: for rollouts it is merged, into these copies and not into the model's own weights.

Everything else (embedding, norms, virtual tokens) is the model's own tensors, so this takes two bytes for each
weight of a matrix. `refresh` fills the same memory again after an update.
"""

import copy
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from chatloom import adapters
from chatloom.adapters.lora import LoRA
from chatloom.engine.weights import modules_of, stamp
from chatloom.models import Decoder


class Lowered:
    """`model` computes what `source` does, with matrices in `dtype`."""

    def __init__(self, source: Decoder, dtype: torch.dtype) -> None:
        self.source, self.dtype = source, dtype
        self._structure = _structure(source)
        own = [*source.parameters(), *source.buffers()]
        self.model: Any = copy.deepcopy(source, {id(tensor): tensor for tensor in own}).eval()
        for path, lora in adapters.loras(self.model).items():
            lora.handle.remove()
            del self.model.get_submodule(path).lora
        self._copies: list[tuple[nn.Module, nn.Module, LoRA | None]] = []
        self._filled: dict[int, Hashable] = {}
        loras = adapters.loras(source)
        for path, module in source.named_modules():
            if isinstance(module, nn.Linear) and not _within(path, loras):
                self._copy(self.model.get_submodule(path), module, loras.get(path))
        if source.head is None:  # tied: the lookup stays as it is, the product has a matrix of its own
            vocab_size, width = source.embedding.weight.shape
            self.model.head = nn.Linear(width, vocab_size, bias=False, device="meta")
            self._copy(self.model.head, source.embedding, None)

    def fits(self, source: Decoder) -> bool:
        """Whether this is of that model, with the modules and tensors that it has now."""
        return source is self.source and _structure(source) == self._structure

    def _copy(self, target: nn.Module, module: nn.Module, lora: LoRA | None) -> None:
        if lora is None and all(each.dtype == self.dtype for each in module.parameters(recurse=False)):
            return  # it is the very same
        for name, parameter in module.named_parameters(recurse=False):
            made = torch.empty_like(parameter, dtype=self.dtype, requires_grad=False)
            setattr(target, name, nn.Parameter(made, requires_grad=False))
        self._copies.append((target, module, lora))

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the copies anew of what has changed since they were made."""
        for number, (target, module, lora) in enumerate(self._copies):
            now = tuple(stamp(tensor) for tensor in module.parameters()), lora is not None and lora.enabled
            if self._filled.get(number) == now:
                continue
            for name, parameter in module.named_parameters(recurse=False):
                merged = lora is not None and lora.enabled and name == "weight"
                target.get_parameter(name).copy_(lora.merged(parameter) if merged else parameter)  # type: ignore[union-attr]
            self._filled[number] = now


def _structure(model: nn.Module) -> list[int]:
    """The modules that it has, and the tensors, which the twin has too where they are not copied."""
    return [id(each) for each in (*modules_of(model), *model.parameters(), *model.buffers())]


def _within(path: str, loras: dict[str, LoRA]) -> bool:
    """Whether a module is a part of an update."""
    return any(path.startswith(f"{layer}.lora.") for layer in loras)


def saves(model: Decoder, dtype: torch.dtype) -> bool:
    """Whether copies would be read faster than the model as it is."""
    weights: list[Tensor] = [module.weight for module in modules_of(model) if isinstance(module, nn.Linear)]
    return bool(adapters.loras(model)) or any(weight.dtype != dtype for weight in weights)
