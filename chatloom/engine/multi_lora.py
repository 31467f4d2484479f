"""Several LoRA adapters over one copy of a model's weights, each request with its own, in one step.

* The product with a matrix is computed once for all rows, whoever they belong to; then each adapter's B A x is added to
  its own rows alone (Chen et al. 2023, Punica, section 4; Sheng et al. 2023, S-LoRA, section 5.1). Rows are put in an
  order in which those of an adapter follow one another, so they are a slice and nothing is gathered or scattered.
  Ranks and the layers that are adapted differ as they like.
* The model is not touched: a step with adapters goes through a second tree over the same modules (`Adapted`), in which
  the adapted layers alone are others. A step without them goes through the model itself and costs what it did.
* A twin for decoding (`lowered`) has several layers in one matrix: their updates become one, A above A and B beside B.
* DoRA (Liu et al. 2024, eq. 5) too: m / |W + s B A| does not depend on the row, and stretches what both products give.
"""

import copy
import itertools
import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chatloom import adapters, checkpoint, models
from chatloom.adapters.lora import LowRank
from chatloom.adapters.peft import updates_from_peft
from chatloom.engine.weights import version
from chatloom.models import Decoder


def named_folders(given: Sequence[str] | None) -> dict[str, str]:
    """Where each adapter is, by its name, of options such as `formal=runs/formal`. ValueError for another form."""
    found: dict[str, str] = {}
    for each in given or ():
        name, equals, folder = each.partition("=")
        if not (name and equals and folder) or name == "off":
            raise ValueError(f"adapters: {each!r} is no NAME=FOLDER, such as formal=runs/formal (and not off=...)")
        if name in found:
            raise ValueError(f"adapters: two of {', '.join(given or ())} have the same name; give each its own")
        found[name] = folder
    return found


class Adapter:
    """One adapter that requests may name: what it adds to the layers of the model, by their paths."""

    def __init__(self, name: str, number: int, updates: Mapping[str, LowRank], tree: Decoder | None = None) -> None:
        """`number` is given once. A `tree` is a model whose own adapter it is, read as it is at each time."""
        self.name, self.number = name, number
        self.space = f"adapter {number} ".encode()  # its requests share keys and values with one another alone
        self._updates = updates
        self._loras = {} if tree is None else adapters.loras(tree)

    @property
    def updates(self) -> Mapping[str, LowRank]:
        """As they are now."""
        return {path: lora.numbers for path, lora in self._loras.items()} if self._loras else self._updates

    def version(self) -> Hashable:
        """Equal as long as nothing was changed in it."""
        return self.number, tuple(version(lora) for lora in self._loras.values())

    @property
    def may_change(self) -> bool:
        """Whether somebody else has hold of its numbers."""
        return bool(self._loras)


class Adapters:
    """The adapters of a model, by name."""

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self._named: dict[str, Adapter] = {}
        self._numbers = itertools.count()
        self.any_came = False  # and may be under way still, when its name has gone

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which they were added."""
        return tuple(self._named)

    def add(self, name: str, source: str | Path | Decoder, *, base: str | Path | None = None) -> None:
        """See `Engine.add_adapter`."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"the adapter's name is {name!r}; it must be a text that is not empty")
        if name in self._named:
            raise ValueError(f"there is an adapter {name!r} already; give another name, or remove that one first")
        self._check_model()
        try:
            if isinstance(source, nn.Module):
                updates, tree = self._of_a_model(source), source
            else:
                saved = checkpoint.adapter_on(source, base)
                names = models.stored_names(self.model)
                updates, tree = updates_from_peft(self.model, names, saved.config, saved.tensors), None
            _check(updates)
        except (ValueError, KeyError, TypeError) as error:
            where = "" if isinstance(source, nn.Module) else f" ({source})"
            raise ValueError(f"adapter {name!r}{where}: {error}") from error
        self._named[name] = Adapter(name, next(self._numbers), updates, tree)
        self.any_came = True

    def remove(self, name: str) -> None:
        """See `Engine.remove_adapter`."""
        del self._named[self.find(name).name]

    def find(self, name: str) -> Adapter:
        """The adapter of a request. ValueError if there is none of that name."""
        self._check_model()
        if name not in self._named:
            known = ", ".join(map(repr, self._named)) or "none; `add_adapter` adds one"
            raise ValueError(f"there is no adapter {name!r}; known: {known}")
        return self._named[name]

    def version(self) -> Hashable:
        """Equal as long as nothing was changed in those that may be."""
        return tuple(adapter.version() for adapter in list(self._named.values()) if adapter.may_change)

    def _check_model(self) -> None:
        if adapters.is_adapted(self.model):
            raise ValueError(
                "the model has an adapter of its own, beside which there can be no named ones; merge it into the "
                "weights (adapters.merge and adapters.detach), or open the base model and name all adapters"
            )

    def _of_a_model(self, other: Decoder) -> dict[str, LowRank]:
        loras = adapters.loras(other)
        if not loras or any(lora.unmerged is not None for lora in loras.values()):
            raise ValueError("the model that is given has no LoRA beside its weights; only LoRA can be named")
        base = dict(self.model.named_parameters())
        theirs = {name: each for name, each in other.named_parameters() if ".lora." not in name}
        for name in base.keys() | theirs.keys():
            if name not in base or name not in theirs or not _equal(base[name], theirs[name]):
                raise ValueError(f"the model that is given has another base: its {name} is not this model's")
        return {path: lora.numbers for path, lora in loras.items()}


def _equal(one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.device, one.dtype) != (other.shape, other.device, other.dtype):
        return False
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)


def _check(updates: Mapping[str, LowRank]) -> None:
    for path, update in updates.items():
        if "experts" in path.split("."):
            raise ValueError(
                f"it adapts {path}, an expert of a mixture, whose rows are not those of the batch; merge it into the "
                "weights and open it as a model of its own"
            )
        if not all(bool(part.isfinite().all()) for part in (update.A, update.B)):
            raise ValueError(f"its update of {path} has numbers that are not finite; its training diverged")


@dataclass(slots=True)
class _Turn:
    """A slice of the rows of a step, and the updates of its adapter by the layers' numbers."""

    first: int
    end: int
    updates: Mapping[int, "_Update"]


@dataclass(frozen=True, slots=True)
class _Update:
    """What is added to the output of one matrix: `low` (inputs, r), `up` (r, outputs), s in it."""

    low: Tensor
    up: Tensor
    stretch: Tensor | None  # DoRA: (outputs,), what the matrix's own product is multiplied by, less 1
    bias: Tensor | None  # which is not stretched; (outputs,)

    def add(self, x: Tensor, output: Tensor) -> None:
        """Add it for rows (N, inputs) to what the matrix made of them, (N, outputs)."""
        if self.stretch is not None:
            own = output if self.bias is None else output - self.bias
            output += own * self.stretch
        lowered = x.to(self.low.dtype) @ self.low
        if lowered.dtype == output.dtype:
            output.addmm_(lowered, self.up)
        else:
            output += lowered @ self.up


class _Layer(nn.Module):
    """In place of an adapted layer."""

    def __init__(self, layer: nn.Module, number: int, turns: list[_Turn], plain: torch.autocast) -> None:
        super().__init__()
        self.layer, self.number = layer, number
        self._turns, self._plain = turns, plain

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs): the layer's own output, and each row's update."""
        output: Tensor = self.layer(x)
        rows, made = x.reshape(-1, x.shape[-1]), output.view(-1, output.shape[-1])
        with self._plain:
            for turn in self._turns:
                update = turn.updates.get(self.number)
                if update is not None:
                    update.add(rows[turn.first : turn.end], made[turn.first : turn.end])
        return output


class Adapted:
    """A second tree over a model's modules, whose layers add to each row of a step the update of its adapter."""

    def __init__(
        self, model: Decoder, source: Decoder, places: Mapping[str, tuple[str, int]], *, dtype: torch.dtype
    ) -> None:
        """`model` computes what `source` does; `places` says where layers of the latter are in it (`Lowered.places`).

        What is prepared for an adapter goes by the weights of this moment, and goes when the adapter does. It is of
        `dtype`, but on a CPU of fp32: with matrices so narrow a call of oneDNN's bf16 takes longer than the product.
        """
        self._source, self._places = source, places
        self._device = source.embedding.weight.device
        self._dtype = torch.float32 if self._device.type == "cpu" else dtype
        self.model: Decoder = _another(model)
        self._own: dict[str, nn.Module] = {"": self.model}  # modules of the tree that are not the model's
        self._layers: dict[str, _Layer] = {}
        self._turns: list[_Turn] = []  # of the step
        self._ready = weakref.WeakKeyDictionary[Adapter, dict[int, _Update]]()

    @cached_property
    def _plain(self) -> torch.autocast:
        """In which updates are computed in their own type."""
        return torch.autocast(self._device.type, enabled=False)

    def begin(self, chunks: Sequence[tuple[Adapter | None, int]]) -> None:
        """Announce the next forward pass: whose its tokens are, (adapter, tokens) after one another."""
        self._turns.clear()
        first = 0
        for adapter, some in itertools.groupby(chunks, key=lambda chunk: chunk[0]):
            end = first + sum(count for _, count in some)
            if adapter is not None:
                self._turns.append(_Turn(first, end, self._prepared(adapter)))
            first = end

    def _prepared(self, adapter: Adapter) -> dict[int, _Update]:
        """The updates of an adapter as this tree's layers compute with them, by the layers' numbers."""
        if adapter not in self._ready:
            by_matrix: dict[str, list[tuple[str, int, LowRank]]] = {}
            for path, update in adapter.updates.items():
                matrix, first = self._places.get(path, (path, 0))
                by_matrix.setdefault(matrix, []).append((path, first, update))
            with self._plain:
                self._ready[adapter] = {
                    self._layer(matrix).number: self._joined(matrix, parts) for matrix, parts in by_matrix.items()
                }
        return self._ready[adapter]

    def _joined(self, matrix: str, parts: Sequence[tuple[str, int, LowRank]]) -> _Update:
        """One update of a matrix, for the layers in it that are given with their first rows."""
        outputs: Any = self._layers[matrix].layer.out_features
        starts: dict[int, int] = {}  # of each A, by its address: layers may share it
        downs: list[Tensor] = []
        for _, _, update in parts:
            if update.A.data_ptr() not in starts:
                starts[update.A.data_ptr()] = sum(map(len, downs))
                downs.append(self._wide(update.A))
        up = torch.zeros(sum(map(len, downs)), outputs, device=self._device)
        stretch, bias = torch.zeros(2, outputs, device=self._device)
        for path, first, update in parts:
            rows, start = self._wide(update.B) * update.scale, starts[update.A.data_ptr()]
            own = slice(first, first + len(rows))
            if update.magnitude is not None:
                layer: Any = self._source.get_submodule(path)
                whole = layer.weight.float() + rows @ self._wide(update.A)
                factor = self._wide(update.magnitude) / torch.linalg.vector_norm(whole, dim=1)
                rows = rows * factor[:, None]
                stretch[own] = factor - 1
                if layer.bias is not None:
                    bias[own] = layer.bias
            up[start : start + update.A.shape[0], own] = rows.t()
        low, up = torch.cat(downs).t().to(self._dtype), up.to(self._dtype)
        if all(update.magnitude is None for _, _, update in parts):
            return _Update(low, up, None, None)
        return _Update(low, up, stretch.to(self._dtype), bias.to(self._dtype))

    def _wide(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self._device, dtype=torch.float32)

    def _layer(self, path: str) -> _Layer:
        """The layer that stands in the tree for one of the model's."""
        if path not in self._layers:
            parent, _, name = path.rpartition(".")
            holder = self._owned(parent)
            layer = holder.get_submodule(name)
            holder._modules[name] = self._layers[path] = _Layer(layer, len(self._layers), self._turns, self._plain)
        return self._layers[path]

    def _owned(self, path: str) -> nn.Module:
        """The module at a path, the tree's own, so that what is in it may be exchanged."""
        if path not in self._own:
            parent, _, name = path.rpartition(".")
            holder = self._owned(parent)
            holder._modules[name] = self._own[path] = _another(holder.get_submodule(name))
        return self._own[path]


def _another(module: Any) -> Any:
    """A module of the same tensors and the same modules in it."""
    made = copy.copy(module)
    made._modules = dict(module._modules)
    return made
