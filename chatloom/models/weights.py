"""Translate tensors between a family's Hugging Face names and ours.

A family's `WEIGHT_NAMES` maps each Hugging Face name (with `{layer}`) to our name, or to a `Joined` where one stored
tensor holds several of ours. Missing and extra tensors are errors that name them: a weight that is silently left at
its random initialisation is a bug that looks like a bad model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Joined:
    """One stored tensor that holds our `names` one after the other along the output axis.

    `transpose` is for GPT-2, whose matrices are stored (inputs, outputs).
    """

    names: tuple[str, ...]
    transpose: bool = False

    def split(self, tensor: Tensor) -> list[Tensor]:
        """The stored tensor as ours."""
        tensor = tensor.t() if self.transpose and tensor.dim() == 2 else tensor
        return [part.contiguous() for part in tensor.chunk(len(self.names), dim=0)]

    def join(self, tensors: list[Tensor]) -> Tensor:
        """Ours as the stored tensor."""
        joined = torch.cat(tensors, dim=0)
        return joined.t().contiguous() if self.transpose and joined.dim() == 2 else joined


WeightNames = Mapping[str, str | Joined]


def _expand(names: WeightNames, num_layers: int) -> dict[str, Joined]:
    expanded = {}
    for stored, ours in names.items():
        joined = ours if isinstance(ours, Joined) else Joined((ours,))
        for layer in range(num_layers) if "{layer}" in stored else (0,):
            parts = tuple(part.replace("{layer}", str(layer)) for part in joined.names)
            expanded[stored.replace("{layer}", str(layer))] = Joined(parts, joined.transpose)
    return expanded


def to_huggingface(state: Mapping[str, Tensor], names: WeightNames, num_layers: int) -> dict[str, Tensor]:
    """Our state dict under Hugging Face names; a name of ours that is absent (a tied head) is left out."""
    stored = {}
    for name, joined in _expand(names, num_layers).items():
        if all(part in state for part in joined.names):
            stored[name] = joined.join([state[part] for part in joined.names])
    return stored


def from_huggingface(
    stored: Mapping[str, Tensor], names: WeightNames, num_layers: int, *, expected: set[str], ignored: tuple[str, ...]
) -> dict[str, Tensor]:
    """Our state dict from Hugging Face tensors.

    Args:
        stored: tensors by Hugging Face name, with or without the base model's prefix (`model.`, `transformer.`).
        names: the family's `WEIGHT_NAMES`.
        num_layers: how often `{layer}` names are repeated.
        expected: our names that the model needs.
        ignored: endings of stored names that carry no weight (buffers that old checkpoints saved).

    Raises:
        ValueError: tensors are missing or left over; the message names them.
    """
    state: dict[str, Tensor] = {}
    used = set()
    for name, joined in _expand(names, num_layers).items():
        short = name.split(".", 1)[1]
        found = name if name in stored else short if short in stored else None
        if found is None:
            continue
        used.add(found)
        state.update(zip(joined.names, joined.split(stored[found])))
    extra = sorted(name for name in stored if name not in used and not name.endswith(ignored))
    missing = sorted(expected - state.keys())
    if missing or extra:
        raise ValueError(
            "the weights do not belong to this configuration: "
            + (f"missing {', '.join(missing[:8])}{' ...' if len(missing) > 8 else ''}" if missing else "")
            + ("; " if missing and extra else "")
            + (f"not expected {', '.join(extra[:8])}{' ...' if len(extra) > 8 else ''}" if extra else "")
        )
    return {name: tensor for name, tensor in state.items() if name in expected}


def expanded(names: WeightNames, num_layers: int) -> dict[str, Joined]:
    """A family's `WEIGHT_NAMES` with every layer's names written out."""
    return _expand(names, num_layers)
