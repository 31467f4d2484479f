"""A model as decoding reads it in a smaller number type: its matrices once in that type, LoRA merged into them.

Each step of decoding reads every matrix for a few tokens, so half the bytes are nearly half the time; casting them anew
in each step, as autocast does with fp32 weights, reads them three times. And LoRA beside each matrix trebles the number
of products: for rollouts it is merged, into these copies and not into the model's own weights. Matrices that read the
same are joined into one (query, key and value; gate and up), because a product of few rows costs little but its call.

Everything else (embedding, norms, virtual tokens) is the model's own tensors, so this takes the bytes of the type
(`quantised`) for each weight of a matrix. `refresh` fills them again after an update. Routers of mixtures stay as
they are: they are small, and which expert a token goes to should not hang on a rounded weight.
"""

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chatloom import adapters, runtime
from chatloom.adapters.lora import LoRA
from chatloom.engine import native
from chatloom.engine.quantised import BITS, Matrix, stored_in
from chatloom.engine.weights import modules_of, stamp, version
from chatloom.models import Decoder
from chatloom.nn.attention import Attention
from chatloom.nn.experts import Experts
from chatloom.nn.feedforward import SwiGLU


@dataclass
class _Copy:
    """One matrix and what it is made of: modules whose outputs come one after the other, each with its LoRA."""

    matrix: Matrix
    parts: Sequence[tuple[nn.Module, LoRA | None]]
    filled: Hashable = None

    def now(self) -> Hashable:
        """Equal as long as nothing was changed that it is made of."""
        tensors = [tensor for module, _ in self.parts for tensor in module.parameters()]
        loras = [None if lora is None else (lora.enabled, lora.scale) for _, lora in self.parts]
        return tuple(map(stamp, tensors)), tuple(loras)

    def fill(self) -> None:
        """Join the parts' weights as they are now."""
        now, self.filled = self.now(), None  # so that one that was interrupted is not taken for done
        weights = [_weight(module, lora) for module, lora in self.parts]
        biases: list[Any] = [getattr(module, "bias", None) for module, _ in self.parts]
        bias = None if biases[0] is None else torch.cat(biases)
        self.matrix.fill(torch.cat(weights) if len(weights) > 1 else weights[0], bias)
        self.filled = now


class Lowered:
    """`model` computes what `source` does, with matrices in `dtype`."""

    def __init__(self, source: Decoder, dtype: str) -> None:
        """`dtype` is "bf16", "fp16", "int8" or "int4"."""
        self.source = source
        self._dtype = dtype
        self._structure = _structure(source)
        own = [*source.parameters(), *source.buffers()]
        self.model: Any = copy.deepcopy(source, {id(tensor): tensor for tensor in own}).eval()
        self._copies: list[_Copy] = []
        self.places: dict[str, tuple[str, int]] = {}  # of the source's layers: the matrix they are in, their first row
        self._version: Hashable = None
        loras = adapters.loras(source)
        for path, module in source.named_modules():
            if isinstance(module, Attention):
                self._join(path, ("query", "key", "value"), ("output",), loras)
            elif isinstance(module, SwiGLU):
                self._join(path, ("gate", "up"), ("down",), loras)
        done = {id(module) for made in self._copies for module, _ in made.parts}
        mixtures = [module for module in source.modules() if isinstance(module, Experts)]
        kept = {id(each.router) for each in mixtures} if dtype in runtime.QUANTISED else set()
        for path, module in source.named_modules():
            if isinstance(module, nn.Linear) and id(module) not in done and not _within(path, loras):
                if id(module) in kept and path not in loras:
                    continue
                parent, _, name = path.rpartition(".")
                self._put(parent, name, [(module, loras.get(path))])
        for module in list(self.model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Dropout):  # which would only be asked whether it trains
                    setattr(module, name, nn.Identity())
        if source.head is None:  # tied: the lookup stays as it is, the product has a matrix of its own
            self._put("", "head", [(source.embedding, None)])

    def fits(self, source: Decoder) -> bool:
        """Whether this is of that model, with the modules and tensors that it has now."""
        return source is self.source and _structure(source) == self._structure

    def _join(self, path: str, joined: Sequence[str], others: Sequence[str], loras: dict[str, LoRA]) -> None:
        """Have one matrix for `joined` of a module; the names of the single ones are left empty."""
        module = self.source.get_submodule(path)
        parts = [(module.get_submodule(name), loras.get(f"{path}.{name}")) for name in joined]
        self._put(path, "joined", parts)
        first = 0
        for name, (part, _) in zip(joined, parts):
            setattr(self.model.get_submodule(path), name, None)
            self.places[f"{path}.{name}"] = f"{path}.joined", first
            first += len(part.get_parameter("weight"))
        for name in others:
            self._put(path, name, [(module.get_submodule(name), loras.get(f"{path}.{name}"))])

    def _put(self, parent: str, name: str, parts: Sequence[tuple[nn.Module, LoRA | None]]) -> None:
        weights = [part.get_parameter("weight") for part, _ in parts]
        outputs, inputs = sum(len(weight) for weight in weights), weights[0].shape[1]
        bits = BITS[stored_in(name if not parent else f"{parent}.{name}", self._dtype)]
        dtype = runtime.pick_dtype(self._dtype, quantised=True)
        matrix = Matrix(inputs, outputs, bits=bits, dtype=dtype, device=weights[0].device)
        setattr(self.model.get_submodule(parent), name, matrix)
        self._copies.append(_Copy(matrix, parts))

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the copies anew of what has changed since they were made."""
        now = version(self.source)
        if now == self._version:
            return
        with torch.autocast(self.source.embedding.weight.device.type, enabled=False):  # updates are merged in fp32
            for made in self._copies:
                if made.filled != made.now():
                    made.fill()
        self._version = now


def _weight(module: nn.Module, lora: LoRA | None) -> Tensor:
    weight: Tensor = module.get_parameter("weight")
    return weight if lora is None or not lora.enabled else lora.merged(weight)


def _structure(model: nn.Module) -> list[int]:
    """The modules that it has, and the tensors, which the twin has too where they are not copied."""
    return [id(each) for each in (*modules_of(model), *model.parameters(), *model.buffers())]


def _within(path: str, loras: dict[str, LoRA]) -> bool:
    """Whether a module is a part of an update."""
    return any(path.startswith(f"{layer}.lora.") for layer in loras)


def saves(model: Decoder, dtype: str) -> bool:
    """Whether copies would be read faster than the model as it is."""
    if dtype in runtime.QUANTISED:
        return True
    weights: list[Tensor] = [module.weight for module in modules_of(model) if isinstance(module, nn.Linear)]
    packed = dtype == "bf16" and native.available(model.embedding.weight.device)
    return packed or bool(adapters.loras(model)) or any(weight.dtype != runtime.pick_dtype(dtype) for weight in weights)


def as_decoded(model: Decoder, dtype: str) -> Decoder:
    """What decoding in `dtype` makes of a model where that rounds its weights; else the model itself."""
    if dtype not in runtime.QUANTISED:
        return model
    lowered = Lowered(model, dtype)
    lowered.refresh()
    quantised: Decoder = lowered.model
    return quantised
