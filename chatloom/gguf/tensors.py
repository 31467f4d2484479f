"""What GGUF calls each tensor of a family, found by the `gguf` package from the family's own `WEIGHT_NAMES`.

The experts of a layer are one tensor there, (E, outputs, inputs), and one each in a Hugging Face folder, whose names
have `{expert}` in them.
"""

from collections.abc import Iterator, Mapping
from types import ModuleType

import torch
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
from gguf.tensor_mapping import get_tensor_name_map
from torch import Tensor

from chatloom.gguf.architectures import Architecture
from chatloom.gguf.layouts import Shape

# The choice of experts, which llama.cpp keeps in fp32 whatever the type of the file.
ROUTER = "ffn_gate_inp.weight"
_ENDS = (".weight", ".bias")
_EXPERT = "{expert}"
_MOST_EXPERTS = 512  # of a layer, in llama.cpp


def tensor_names(module: ModuleType, name: str, num_layers: int) -> dict[str, str]:
    """GGUF name -> Hugging Face name of every tensor of a family's model."""
    number = next(number for number, each in MODEL_ARCH_NAMES.items() if each == name)
    known = get_tensor_name_map(MODEL_ARCH(number), num_layers)
    names: dict[str, str] = {}
    for stored in module.WEIGHT_NAMES:
        for layer in range(num_layers) if "{layer}" in stored else (0,):
            theirs = stored.replace("{layer}", str(layer))
            together = theirs.replace(f".{_EXPERT}", "")
            short = together.split(".", 1)[1]  # BLOOM's are listed without `transformer.`
            ours = next(filter(None, (known.get_name(each, _ENDS) for each in (together, short))), None)
            if ours is not None:
                names[ours] = theirs
    return names


def as_huggingface(
    name: str, tensor: Tensor, names: Mapping[str, str], architecture: Architecture, config: Shape
) -> Iterator[tuple[str, Tensor]]:
    """A tensor of a file by Hugging Face name, or its experts; what has no name there keeps its own, and is refused."""
    theirs = names.get(name, name)
    if _EXPERT not in theirs:
        yield theirs, architecture.from_gguf(theirs, tensor, config)
        return
    if len(tensor) > _MOST_EXPERTS:
        raise ValueError(f"{name} is {len(tensor):,} experts; at most {_MOST_EXPERTS}")
    for number, part in enumerate(tensor):
        yield theirs.replace(_EXPERT, str(number)), part


def as_gguf(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], architecture: Architecture, config: Shape
) -> dict[str, Tensor]:
    """Tensors by GGUF name. Raises ValueError for one that GGUF has no name for."""
    left, found = dict(tensors), {}
    for name, theirs in names.items():
        if _EXPERT in theirs:
            parts: list[Tensor] = []
            while (part := left.pop(theirs.replace(_EXPERT, str(len(parts))), None)) is not None:
                parts.append(part)
            if parts:
                found[name] = torch.stack(parts).float()
        elif theirs in left:
            found[name] = architecture.to_gguf(theirs, left.pop(theirs), config).float()
    if left:
        raise ValueError(f"GGUF has no name for {', '.join(sorted(left)[:4])} of this model; use --to hf")
    return found
