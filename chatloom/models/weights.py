"""Translate tensors between a family's Hugging Face names and ours.

A family's `WEIGHT_NAMES` maps each Hugging Face name (with `{layer}`, `{expert}` or `{head}`) to our name, or to a
`Joined` where one stored tensor holds several of ours. Missing and extra tensors are errors that name them: a weight
that is silently left at its random initialisation is a bug that looks like a bad model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, Protocol

import torch
from torch import Tensor


class Counts(Protocol):
    """What of a family's config says how often a name is repeated; a mixture has `num_experts` too."""

    @property
    def num_layers(self) -> int: ...  # noqa: D102
    @property
    def num_heads(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Joined:
    """One stored tensor that holds our `names` one after the other along the output axis.

    `transpose` is for GPT-2, whose matrices are stored (inputs, outputs). With `groups` the rows of every part are cut
    into so many groups and the stored tensor takes one group of each part in turn: "heads" for GPT-NeoX and BLOOM,
    where query, key and value of a head stand together, and 4 for CodeGen.
    """

    names: tuple[str, ...]
    transpose: bool = False
    groups: int | Literal["heads"] = 1

    def split(self, tensor: Tensor, sizes: list[int] | None = None) -> list[Tensor]:
        """The stored tensor as ours; `sizes` are the rows of each part, None for equal parts. ValueError if unfit."""
        tensor = tensor.t() if self.transpose and tensor.dim() == 2 else tensor
        assert isinstance(self.groups, int)
        rows, parts = len(tensor), len(self.names)
        sizes = sizes or [rows // parts] * parts
        if sum(sizes) != rows:
            raise ValueError(f"{rows} rows where {' + '.join(map(str, sizes))} are needed for {', '.join(self.names)}")
        if self.groups == 1:
            return [part.contiguous() for part in torch.split(tensor, sizes)]
        grouped = torch.unflatten(tensor, 0, (self.groups, -1))
        parts_of_group = torch.split(grouped, [size // self.groups for size in sizes], dim=1)
        return [part.flatten(0, 1).contiguous() for part in parts_of_group]

    def join(self, tensors: list[Tensor]) -> Tensor:
        """Ours as the stored tensor."""
        assert isinstance(self.groups, int)
        if self.groups == 1:
            joined = torch.cat(tensors, dim=0)
        else:
            joined = torch.cat([torch.unflatten(part, 0, (self.groups, -1)) for part in tensors], dim=1).flatten(0, 1)
        return joined.t().contiguous() if self.transpose and joined.dim() == 2 else joined


WeightNames = Mapping[str, str | Joined]


def linear(stored: str, *ours: str, transpose: bool = False, groups: int | Literal["heads"] = 1) -> WeightNames:
    """Names of the weight and the bias of a stored matrix that holds ours."""
    return {
        f"{stored}.{kind}": Joined(tuple(f"{name}.{kind}" for name in ours), transpose, groups)
        for kind in ("weight", "bias")
    }


def head_names(names: WeightNames) -> tuple[str, ...]:
    """The stored names of the vocabulary projection."""
    return tuple(
        stored
        for stored, ours in names.items()
        if (ours.names[0] if isinstance(ours, Joined) else ours).startswith("head.")
    )


def expanded(names: WeightNames, config: Counts) -> dict[str, Joined]:
    """Every stored name of a model of that config, and the tensors of ours that it holds."""
    counts = {"layer": config.num_layers, "expert": getattr(config, "num_experts", 0), "head": config.num_heads}
    found = {}
    for stored, ours in names.items():
        joined = ours if isinstance(ours, Joined) else Joined((ours,))
        joined = replace(joined, groups=config.num_heads) if joined.groups == "heads" else joined
        repeated = [name for name in counts if f"{{{name}}}" in stored]
        for numbers in product(*(range(counts[name]) for name in repeated)):
            values = dict(zip(repeated, numbers))
            found[stored.format(**values)] = replace(
                joined, names=tuple(name.format(**values) for name in joined.names)
            )
    return found


def to_huggingface(state: Mapping[str, Tensor], names: WeightNames, config: Counts) -> dict[str, Tensor]:
    """Our state dict under Hugging Face names; a name of ours that is absent (a tied head) is left out."""
    stored = {}
    for name, joined in expanded(names, config).items():
        if all(part in state for part in joined.names):
            stored[name] = joined.join([state[part] for part in joined.names])
    return stored


def from_huggingface(
    stored: Mapping[str, Tensor],
    names: WeightNames,
    config: Counts,
    *,
    expected: Mapping[str, Tensor],
    ignored: tuple[str, ...],
) -> dict[str, Tensor]:
    """Our state dict from Hugging Face tensors.

    Args:
        stored: tensors by Hugging Face name, with or without the base model's prefix (`model.`, `transformer.`).
        names: the family's `WEIGHT_NAMES`.
        config: how often `{layer}`, `{expert}` and `{head}` names are repeated.
        expected: our names that the model needs, with tensors of the shapes that it needs.
        ignored: endings of stored names that carry no weight (buffers that old checkpoints saved).

    Raises:
        ValueError: tensors are missing, left over or of another shape; the message names them.
    """
    state: dict[str, Tensor] = {}
    used = set()
    for name, joined in expanded(names, config).items():
        short = name.split(".", 1)[1]
        found = name if name in stored else short if short in stored else None
        if found is None or not any(part in expected for part in joined.names):
            continue
        used.add(found)
        sizes = [len(expected[part]) for part in joined.names] if len(joined.names) > 1 else None
        try:
            state.update(zip(joined.names, joined.split(stored[found], sizes)))
        except ValueError as error:
            raise ValueError(f"{found} does not belong to this configuration: {error}") from error
    extra = sorted(name for name in stored if name not in used and not name.endswith(ignored))
    missing = sorted(expected.keys() - state.keys())
    if missing or extra:
        raise ValueError(
            "the weights do not belong to this configuration: "
            + (f"missing {', '.join(missing[:8])}{' ...' if len(missing) > 8 else ''}" if missing else "")
            + ("; " if missing and extra else "")
            + (f"not expected {', '.join(extra[:8])}{' ...' if len(extra) > 8 else ''}" if extra else "")
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, but config.json asks for {tuple(expected[name].shape)}")
    return state
