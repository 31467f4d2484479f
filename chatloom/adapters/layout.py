"""Which linear layers of a model are stored together, and how `peft` therefore names an update of them.

`peft` adapts the modules of transformers. Where one of those holds several of ours (GPT-2's `c_attn` is query, key and
value), its A is theirs in common and its B has their rows one after the other: one A shared by our layers is exactly
that. Where the rows are stored in another order, B's rows are put in that order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

_WEIGHT = ".weight"


class Fused(Protocol):
    """What is needed of a family's entry for a stored tensor: `models.weights.Joined`."""

    @property
    def names(self) -> tuple[str, ...]:
        """Our tensors in it."""

    def join(self, tensors: list[Tensor]) -> Tensor:
        """Ours as the stored tensor; vectors (biases) one after the other, in the order it stores rows."""


@dataclass(frozen=True, eq=False)
class StoredLayer:
    """A module as transformers has it: `name`, our linear layers in it, and which of their rows each of its rows is."""

    name: str
    paths: tuple[str, ...]
    order: Tensor  # (outputs,)
    transposed: bool  # transformers' Conv1D, which `peft` calls fan_in_fan_out

    def join(self, parts: list[Tensor]) -> Tensor:
        """Rows of our layers, (outputs of each, ...), as the stored module has them."""
        return torch.cat(parts)[self.order.to(parts[0].device)]

    def split(self, whole: Tensor, sizes: list[int]) -> list[Tensor]:
        """Undo of `join`."""
        ours = torch.empty_like(whole)
        ours[self.order.to(whole.device)] = whole
        return list(torch.split(ours, sizes))


def stored_layers(model: nn.Module, names: Mapping[str, Fused]) -> list[StoredLayer]:
    """The stored modules that consist of linear layers of the model's blocks, in the order of `names`."""
    modules = dict(model.named_modules())
    layers = []
    for stored, fused in names.items():
        paths = tuple(name.removesuffix(_WEIGHT) for name in fused.names)
        linear: list[Any] = [modules.get(path) for path in paths]
        if not stored.endswith(_WEIGHT) or not all(_is_hidden(path) for path in paths):
            continue
        if all(isinstance(layer, nn.Linear) for layer in linear):
            order = _order(stored, fused, [layer.out_features for layer in linear])
            transposed = bool(getattr(fused, "transpose", False))
            layers.append(StoredLayer(stored.removesuffix(_WEIGHT), paths, order, transposed))
    return layers


def alone(model: nn.Module) -> list[StoredLayer]:
    """Every linear layer of the blocks as a stored module of its own, for a model that no file names."""
    return [
        StoredLayer(path, (path,), torch.arange(layer.out_features, device="cpu"), False)
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and _is_hidden(path)
    ]


def _is_hidden(path: str) -> bool:
    return "blocks" in path.split(".")


def _order(stored: str, fused: Fused, sizes: list[int]) -> Tensor:
    numbers = torch.arange(sum(sizes), device="cpu")
    order = fused.join(list(torch.split(numbers, sizes)))
    if order.shape != numbers.shape:
        raise ValueError(f"{stored} does not hold {', '.join(fused.names)} row by row, so LoRA cannot adapt it")
    return order
