"""Put an adapter on a model, by module path, without touching the model's own weights or their names."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from chatloom.adapters.config import EVERY_LAYER, AdapterConfig
from chatloom.adapters.layout import Fused, StoredLayer, alone, stored_layers
from chatloom.adapters.lora import LoRA, fresh_down
from chatloom.adapters.prefix import PrefixTuning
from chatloom.adapters.prompt import PromptTuning

Module = TypeVar("Module", bound=nn.Module)


def attach(decoder: Any, config: AdapterConfig, *, names: Mapping[str, Fused] | None = None) -> None:
    """Freeze a model and put a fresh adapter on it, which alone is trained; draws from torch's generator.

    Args:
        decoder: any family's model.
        config: what kind; with `adapter` None nothing happens.
        names: `models.stored_names(decoder)`: layers that are stored as one matrix get one update, as in `peft`, and
            `adapter_targets` may be Hugging Face's names. None: every linear layer is on its own.

    Raises:
        ValueError: it has an adapter already, no layer has a name that `adapter_targets` ends with, or the virtual
            tokens leave no room in the context.
    """
    if config.adapter is None:
        return
    if is_adapted(decoder):
        raise ValueError("the model has an adapter already; merge it into the weights first, or adapt its base model")
    if config.adapter == "lora":
        layers = alone(decoder) if names is None else stored_layers(decoder, names)
        chosen = chosen_paths(layers, config.adapter_targets)
        decoder.requires_grad_(False)
        for paths in chosen:
            put_lora(
                decoder,
                paths,
                rank=config.adapter_rank,
                scale=config.scale,
                dropout=config.adapter_dropout,
                dora=config.adapter_dora,
            )
    else:
        put_prefix(decoder, config.adapter, config.adapter_tokens)
    decoder.adapter_config = config


def chosen_paths(layers: Sequence[StoredLayer], targets: Sequence[str]) -> list[tuple[str, ...]]:
    """Our layers that `targets` name, those of a stored module together. ValueError for a target that names none."""
    known = sorted({name.rsplit(".", 1)[-1] for layer in layers for name in (layer.name, *layer.paths)})
    for target in targets:
        names = [name for layer in layers for name in (layer.name, *layer.paths)]
        if target != EVERY_LAYER and not any(_ends(name, target) for name in names):
            raise ValueError(
                f"adapter_targets: no linear layer's path ends with {target!r}; there are {', '.join(known)}"
            )
    chosen = []
    for layer in layers:
        every = EVERY_LAYER in targets and not _of_a_mixture(layer.paths[0])
        whole = every or any(_ends(layer.name, target) for target in targets)
        paths = tuple(path for path in layer.paths if whole or any(_ends(path, target) for target in targets))
        if paths:
            chosen.append(paths)
    return chosen


def _of_a_mixture(path: str) -> bool:
    """Experts are many and see few tokens each, and a router that learns alone loses its balance."""
    return not {"experts", "router"}.isdisjoint(path.split("."))


def _ends(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")


def put_lora(
    decoder: nn.Module, paths: Sequence[str], *, rank: int, scale: float, dropout: float, dora: bool
) -> list[LoRA]:
    """LoRA on the linear layers at `paths`, with one A for all of them."""
    linear: list[Any] = [decoder.get_submodule(path) for path in paths]
    down = fresh_down(linear[0].in_features, rank, device=linear[0].weight.device)
    placed = []
    for layer in linear:
        lora = LoRA(layer, down, scale=scale, dropout=dropout, dora=dora)
        layer.add_module("lora", lora.train(layer.training))
        placed.append(lora)
    return placed


def put_prefix(decoder: Any, kind: str, num_tokens: int) -> nn.Module:
    """Virtual tokens before the text; what the model calls its context gets shorter by them."""
    room = decoder.config.context_length - num_tokens
    if room < 1:
        raise ValueError(
            f"{num_tokens} virtual tokens leave no room in the context of {decoder.config.context_length}; "
            "use fewer (--adapter-tokens)"
        )
    made: nn.Module = (PromptTuning if kind == "prompt" else PrefixTuning)(decoder, num_tokens)
    decoder.requires_grad_(False)
    decoder.prefix = made.train(decoder.training)
    decoder.config = replace(decoder.config, context_length=room)
    return made


def detach(decoder: Any) -> None:
    """Take the adapter off: the model is what it was, all its weights trained again. A merged weight stays merged."""
    for path, lora in loras(decoder).items():
        lora.handle.remove()
        del decoder.get_submodule(path).lora
    if decoder.prefix is not None:
        decoder.config = _config_without(decoder)
        decoder.prefix = None
    decoder.adapter_config = None
    decoder.requires_grad_(True)


def loras(decoder: nn.Module) -> dict[str, LoRA]:
    """The updates on a model, by the path of their layer."""
    return {
        path.removesuffix(".lora"): module
        for path, module in decoder.named_modules()
        if isinstance(module, LoRA) and path.endswith(".lora")
    }


def is_adapted(decoder: Any) -> bool:
    """Whether a model has an adapter, switched off or not."""
    return getattr(decoder, "adapter_config", None) is not None


@contextlib.contextmanager
def off(decoder: Any) -> Iterator[None]:
    """Within the block the model is its base, bit for bit."""
    updates, prefix, config = loras(decoder), decoder.prefix, decoder.config
    for path, lora in updates.items():
        if lora.unmerged is not None:
            raise ValueError(f"LoRA is merged into {path} and cannot be switched off; unmerge it first")
    enabled = {path: lora.enabled for path, lora in updates.items()}
    try:
        for lora in updates.values():
            lora.enabled = False
        if prefix is not None:
            decoder.config, decoder.prefix = _config_without(decoder), None
        yield
    finally:
        for path, lora in updates.items():
            lora.enabled = enabled[path]
        if prefix is not None:
            decoder.config, decoder.prefix = config, prefix


def _config_without(decoder: Any) -> Any:
    return replace(decoder.config, context_length=decoder.config.context_length + decoder.prefix.num_tokens)


def shared(module: Module) -> Module:
    """Another module of the same structure: what is frozen is the same tensors, what is trained is copied.

    Each has its own adapter, mode and dropout, so one set of weights serves as policy, reference, reward model and
    critic. Move a model to its device before it is shared.
    """
    same: list[Tensor] = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    same += list(module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in same})


def hold_frozen(decoder: nn.Module, dtype: torch.dtype) -> None:
    """Keep the matrices that are not trained in `dtype`, for all modules that share them; norms and embeddings stay.

    For a forward pass whose products are in that type anyway: it rounds them to the same numbers, each time anew. DoRA
    also reads the lengths of their rows, so its matrices stay as they are.
    """
    measured = {path for path, lora in loras(decoder).items() if lora.magnitude is not None}
    for path, module in decoder.named_modules():
        if not isinstance(module, nn.Linear) or path in measured:
            continue
        if not any(each.requires_grad for each in module.parameters(recurse=False)):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


def dormant_names(decoder: nn.Module) -> set[str]:
    """Names in the state dict that belong to updates which change nothing yet."""
    names = set()
    for path, lora in loras(decoder).items():
        linear: Any = decoder.get_submodule(path)
        if lora.dormant(linear.weight):
            names |= {f"{path}.lora.{name}" for name in lora.state_dict()}
    return names
