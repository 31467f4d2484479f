"""Open a GGUF file as what a Hugging Face folder holds: configuration, tensors, tokenizer and chat template.

Quantised matrices are dequantised when they are read, to fp32 unless another dtype is asked for: their values are a
scale times a small whole number, which bf16 would round. A file that holds bf16 alone stays bf16.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import quants
from gguf.constants import GGMLQuantizationType as Kind
from torch import Tensor

from chatloom import models
from chatloom.gguf import architectures, configuration, vocabulary
from chatloom.gguf.container import Container, StoredTensor, read_container
from chatloom.gguf.tensors import ROUTER, as_huggingface, tensor_names
from chatloom.tokenizers.bpe import Tokenizer

# What is read, as DESIGN asks and a little more: everything but the kinds of 1 to 3 bits.
KINDS = (
    *(Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1),
    *(Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K),
)
TEMPLATE = "tokenizer.chat_template"
ROPE = "rope_freqs.weight"
_NOT_WEIGHTS = (ROPE,)


@dataclass(frozen=True)
class GgufModel:
    """A GGUF file in the terms of a Hugging Face folder. `template` is None for a base model."""

    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    tokenizer: Tokenizer
    template: str | None
    _container: Container
    _names: dict[str, str]

    def tensors(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """All tensors by Hugging Face name, dequantised; `dtype` None is that of the module's docstring."""
        stored = self._container.tensors
        if dtype is None:
            matrices = [each for name, each in stored.items() if len(each.shape) > 1 and not name.endswith(ROUTER)]
            halves = all(each.kind == Kind.BF16 for each in matrices)
            dtype = torch.bfloat16 if halves else torch.float32
        architecture = architectures.architecture_of(self._container.metadata, "")
        found: dict[str, Tensor] = {}
        for name, each in stored.items():
            if name not in _NOT_WEIGHTS:
                found.update(as_huggingface(name, dequantise(each).to(dtype), self._names, architecture, self.config))
        return found


def read_model(path: Path) -> GgufModel:
    """Read a file's metadata and check it against its tensors; raises ValueError for what is damaged or unknown."""
    container = read_container(path)
    metadata, stored = container.metadata, container.tensors
    architecture = architectures.architecture_of(metadata, path)
    name = architecture.name
    module = models.family(architecture.model_type)
    for each in stored.values():
        if each.kind not in KINDS:
            known = ", ".join(kind.name for kind in KINDS)
            raise ValueError(f"{path}: {each.name} is quantised as {each.kind.name}; known: {known}")
    if configuration.EMBEDDING not in stored:
        raise ValueError(f"{path} has no {configuration.EMBEDDING}, so it is no language model")
    shapes = {key: each.shape for key, each in stored.items()}
    factors = dequantise(stored[ROPE]).numpy().ravel() if ROPE in stored else None
    config = configuration.config_from(metadata, architecture, shapes, factors)
    num_layers = metadata.get(f"{name}.block_count")
    if not isinstance(num_layers, int) or not 0 < num_layers <= len(stored):
        raise ValueError(f"{path}: {name}.block_count is {num_layers}, and there are {len(stored)} tensors")
    names = tensor_names(module, name, num_layers)
    template = metadata.get(TEMPLATE)
    return GgufModel(
        config,
        dict(_shapes(stored, names, architecture, config)),
        vocabulary.tokenizer_from(metadata, path),
        template if isinstance(template, str) and template.strip() else None,
        container,
        names,
    )


def _shapes(
    stored: Mapping[str, StoredTensor],
    names: Mapping[str, str],
    architecture: architectures.Architecture,
    config: Mapping[str, Any],
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Hugging Face name and shape of each tensor, without reading it."""
    for name, each in stored.items():
        if name in _NOT_WEIGHTS:
            continue
        try:
            empty = torch.empty(each.shape, device="meta")
            found = [(theirs, part.shape) for theirs, part in as_huggingface(name, empty, names, architecture, config)]
        except (RuntimeError, ArithmeticError, TypeError, LookupError, ValueError) as error:
            raise ValueError(f"{name} of shape {each.shape} does not fit the file's configuration: {error}") from error
        yield from ((theirs, tuple(shape)) for theirs, shape in found)


def dequantise(stored: StoredTensor) -> Tensor:
    """The tensor in fp32."""
    if stored.kind == Kind.BF16:
        return torch.from_numpy(stored.data.view(np.int16)).view(torch.bfloat16).float().reshape(stored.shape)
    with np.errstate(all="ignore"):  # what is damaged inside a block is numbers all the same; `doctor` finds NaNs
        values = quants.dequantize(stored.data, stored.kind)
    return torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(stored.shape)
