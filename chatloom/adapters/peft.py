"""Adapters in the layout of the `peft` library, in both directions: its configuration and its tensors' names.

`peft` adapts the modules of transformers, so names and rows go through the family's stored layers (`layout`). Its
tensors are `base_model.model.<module>.lora_A.weight` and so on; virtual tokens are one matrix, `prompt_embeddings`; a
trained score head is one of `modules_to_save`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chatloom.adapters.attach import is_adapted, loras, put_lora, put_prefix
from chatloom.adapters.config import EVERY_LAYER, AdapterConfig, scale
from chatloom.adapters.layout import Fused, StoredLayer, stored_layers
from chatloom.adapters.lora import LoRA, LowRank

_KINDS = {"LORA": "lora", "PROMPT_TUNING": "prompt", "PREFIX_TUNING": "prefix"}
_TYPES = {kind: name for name, kind in _KINDS.items()}
_LORA_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(A|B|magnitude_vector)(?:\.weight)?")
_SCORE = re.compile(r"(?:base_model\.)?(?:model\.)?score\.weight")
_VIRTUAL = "prompt_embeddings"
# What a LoRA of peft's may be that is more than B A beside a linear layer, with the value that says it is not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),  # the others also change the base
    **dict.fromkeys(("lora_bias", "use_qalora", "use_bdlora"), (False, None)),
    **dict.fromkeys(("layer_replication", "target_parameters", "trainable_token_indices", "arrow_config"), (None,)),
    **dict.fromkeys(("alora_invocation_tokens",), (None,)),
}


def to_peft(
    decoder: Any, names: Mapping[str, Fused], *, base: str, score: Tensor | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`adapter_config.json` and the tensors of an adapted model; `score` (1, C) makes it a sequence classifier's.

    Raises:
        ValueError: layers that transformers stores as one matrix have updates of their own, which it cannot express.
    """
    options: AdapterConfig = decoder.adapter_config
    assert options.adapter is not None
    config: dict[str, Any] = {
        "peft_type": _TYPES[options.adapter],
        "task_type": "CAUSAL_LM" if score is None else "SEQ_CLS",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "modules_to_save": None if score is None else ["classifier", "score"],
    }
    if options.adapter == "lora":
        more, tensors = _lora_to_peft(decoder, options, names)
        head = "base_model.model.score.weight"
    else:
        tensors = {_VIRTUAL: decoder.prefix.prompt_embeddings}
        more = _virtual_options(decoder, options.adapter)
        head = "base_model.score.weight"
    if score is not None:
        tensors[head] = score
    return config | more, tensors


def _virtual_options(decoder: Any, kind: str) -> dict[str, Any]:
    config, prefix = decoder.config, decoder.prefix
    heads = config.num_heads if kind == "prompt" else config.num_key_value_heads
    width = config.width if kind == "prompt" else heads * config.head_width
    options = {
        "num_virtual_tokens": prefix.num_tokens,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "num_attention_heads": heads,
        "num_layers": config.num_layers,
    }
    if kind == "prefix":
        return {**options, "encoder_hidden_size": width, "prefix_projection": False}
    return {**options, "prompt_tuning_init": "RANDOM"}


def _lora_to_peft(
    decoder: Any, options: AdapterConfig, names: Mapping[str, Fused]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    updates = loras(decoder)
    adapted = [layer for layer in stored_layers(decoder, names) if any(path in updates for path in layer.paths)]
    tensors: dict[str, Tensor] = {}
    ranks, alphas = {}, {}
    for layer in adapted:
        own = [updates[path] for path in layer.paths if path in updates]
        if any(lora.A is not own[0].A for lora in own):
            raise ValueError(
                f"{layer.name} is one matrix in transformers, but its parts {', '.join(layer.paths)} have updates of "
                "their own; attach the adapter with names=models.stored_names(model)"
            )
        prefix = f"base_model.model.{layer.name}"
        tensors[f"{prefix}.lora_A.weight"] = own[0].A.weight
        tensors[f"{prefix}.lora_B.weight"] = layer.join(
            [_rows(decoder, path, updates, own[0].rank) for path in layer.paths]
        )
        if options.adapter_dora:
            lengths = [_lengths(decoder, path, updates) for path in layer.paths]
            tensors[f"{prefix}.lora_magnitude_vector"] = layer.join(lengths)
        rank = own[0].rank
        alpha = own[0].scale * (rank**0.5 if options.adapter_rslora else rank)
        if rank != options.adapter_rank:
            ranks[layer.name] = rank
        if abs(alpha - options.adapter_alpha) > 1e-6 * alpha:
            alphas[layer.name] = _number(alpha)
    return {
        "r": options.adapter_rank,
        "lora_alpha": _number(options.adapter_alpha),
        "lora_dropout": options.adapter_dropout,
        "use_rslora": options.adapter_rslora,
        "use_dora": options.adapter_dora,
        "bias": "none",
        "target_modules": [layer.name for layer in adapted],
        "fan_in_fan_out": any(layer.transposed for layer in adapted),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }, tensors


def _number(value: float) -> float:
    nearest = round(value)
    return nearest if abs(value - nearest) < 1e-6 * max(1.0, abs(value)) else value


def _rows(decoder: Any, path: str, updates: Mapping[str, LoRA], rank: int) -> Tensor:
    """B of a layer; zeros for one that is stored with adapted ones and is not adapted itself."""
    if path in updates:
        return updates[path].B.weight
    linear: Any = decoder.get_submodule(path)
    return torch.zeros(linear.out_features, rank, device=linear.weight.device)


def _lengths(decoder: Any, path: str, updates: Mapping[str, LoRA]) -> Tensor:
    """DoRA's magnitudes of a layer; the lengths that its rows have where it is not adapted."""
    if path in updates:
        magnitude = updates[path].magnitude
        assert magnitude is not None
        return magnitude
    linear: Any = decoder.get_submodule(path)
    lengths: Tensor = torch.linalg.vector_norm(linear.weight.detach().float(), dim=1)
    return lengths


def from_peft(
    decoder: Any, names: Mapping[str, Fused], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Tensor | None:
    """Put an adapter of `peft`'s on a model, frozen base and all; returns the weight of its score head, if it has one.

    Raises:
        ValueError: a kind of adapter that is not here, or one for another base: shapes or names do not fit.
    """
    if is_adapted(decoder):
        raise ValueError("the model has an adapter already; open its base model instead")
    kind, head, rest = _parted(config, tensors)
    if kind == "lora":
        decoder.adapter_config = _lora_from_peft(decoder, names, config, rest)
    else:
        decoder.adapter_config = _virtual_from_peft(decoder, kind, rest)
    return head


def updates_from_peft(
    decoder: nn.Module, names: Mapping[str, Fused], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, LowRank]:
    """What a LoRA of `peft`'s adds to the layers of a model, by their paths; the model stays as it is.

    Raises:
        ValueError: as `from_peft`, and for what is more than LoRA, or less than a language model.
    """
    kind, head, rest = _parted(config, tensors)
    if kind != "lora":
        raise ValueError(
            f"{kind} tuning adds virtual tokens to the model, and only LoRA (with rsLoRA and DoRA) can be one of "
            "several adapters; open this one as a model of its own"
        )
    if head is not None:
        raise ValueError("the adapter is a reward model's; a language model's is needed here")
    return {
        path: LowRank(parts["A"], rows, factor, lengths)
        for layer, parts, factor in _stored_updates(decoder, names, config, rest)
        for path, rows, lengths in _by_path(decoder, layer, parts)
    }


def _parted(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[str, Tensor | None, dict[str, Tensor]]:
    """The kind of an adapter, the weight of its score head, and its other tensors."""
    kind = _KINDS.get(str(config.get("peft_type")))
    if kind is None:
        raise ValueError(f"the adapter is of type {config.get('peft_type')!r}; those known are {', '.join(_KINDS)}")
    heads = [name for name in tensors if _SCORE.fullmatch(name)]
    rest = {name: tensor for name, tensor in tensors.items() if name not in heads}
    saved = [name for name in config.get("modules_to_save") or () if name not in ("classifier", "score")]
    if saved:
        raise ValueError(f"the adapter also replaces {', '.join(saved)}; only a score head can be replaced")
    return kind, tensors[heads[0]] if heads else None, rest


def _virtual_from_peft(decoder: Any, kind: str, tensors: Mapping[str, Tensor]) -> AdapterConfig:
    if set(tensors) != {_VIRTUAL} or tensors[_VIRTUAL].ndim != 2:
        raise ValueError(f"{kind} tuning is one matrix {_VIRTUAL}; the file has {_some(list(tensors))}")
    config, found = decoder.config, tensors[_VIRTUAL]
    prefix_width = 2 * config.num_layers * config.num_key_value_heads * config.head_width
    width = config.width if kind == "prompt" else prefix_width
    if found.shape[1] != width:
        raise ValueError(
            f"the adapter was trained on another base model: its virtual tokens have {found.shape[1]} numbers each, "
            f"and this model needs {width}"
        )
    state = torch.get_rng_state()
    made: Any = put_prefix(decoder, kind, len(found))
    torch.set_rng_state(state)
    _copy(made.prompt_embeddings, found)
    return AdapterConfig(adapter=kind, adapter_tokens=len(found))  # type: ignore[arg-type]


def _lora_from_peft(
    decoder: Any, names: Mapping[str, Fused], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> AdapterConfig:
    found = _stored_updates(decoder, names, config, tensors)
    targets = config.get("target_modules")
    given = tuple(targets) if isinstance(targets, list) and targets else tuple(layer.name for layer, _, _ in found)
    options = AdapterConfig(
        adapter="lora",
        adapter_rank=int(config["r"]),
        adapter_alpha=float(config["lora_alpha"]),
        adapter_dropout=float(config.get("lora_dropout") or 0.0),
        adapter_rslora=bool(config.get("use_rslora")),
        adapter_dora=bool(config.get("use_dora")),
        adapter_targets=(EVERY_LAYER,) if targets == "all-linear" else given,
    )
    decoder.requires_grad_(False)
    state = torch.get_rng_state()
    for layer, parts, factor in found:
        placed = put_lora(
            decoder,
            layer.paths,
            rank=len(parts["A"]),
            scale=factor,
            dropout=options.adapter_dropout,
            dora=options.adapter_dora,
        )
        _copy(placed[0].A.weight, parts["A"])
        for lora, (_, rows, lengths) in zip(placed, _by_path(decoder, layer, parts)):
            _copy(lora.B.weight, rows)
            if lengths is not None:
                assert lora.magnitude is not None
                _copy(lora.magnitude, lengths)
    torch.set_rng_state(state)
    return options


_Stored = tuple[StoredLayer, dict[str, Tensor], float]  # a layer, its tensors, and what B A is multiplied by


def _stored_updates(
    decoder: nn.Module, names: Mapping[str, Fused], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> list[_Stored]:
    """What a LoRA of `peft`'s has for each stored layer, checked to be no more than that and to fit the model."""
    for option, plain in _PLAIN.items():
        if option in config and config[option] not in plain:
            raise ValueError(f"the adapter has {option}={config[option]!r}, which is not here; allowed: {plain[0]!r}")
    rslora, alpha = bool(config.get("use_rslora")), float(config["lora_alpha"])
    updates = []
    for layer, parts in _by_layer(stored_layers(decoder, names), tensors).items():
        _check_shapes(decoder, layer, parts, dora=bool(config.get("use_dora")))
        own_alpha = _matching(config.get("alpha_pattern") or {}, layer.name, alpha)
        updates.append((layer, parts, scale(own_alpha, len(parts["A"]), rslora=rslora)))
    return updates


def _by_path(
    decoder: nn.Module, layer: StoredLayer, parts: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Path, rows of B and magnitudes of each of our layers in a stored one."""
    linear: list[Any] = [decoder.get_submodule(path) for path in layer.paths]
    sizes = [each.out_features for each in linear]
    lengths: Sequence[Tensor | None] = [None] * len(sizes)
    if "magnitude_vector" in parts:
        lengths = layer.split(parts["magnitude_vector"], sizes)
    yield from zip(layer.paths, layer.split(parts["B"], sizes), lengths)


def _by_layer(layers: Sequence[StoredLayer], tensors: Mapping[str, Tensor]) -> dict[StoredLayer, dict[str, Tensor]]:
    """A, B and magnitudes of each stored layer. ValueError for a tensor that is no linear layer's of the blocks."""
    known = {layer.name: layer for layer in layers}
    known |= {layer.name.split(".", 1)[1]: layer for layer in layers}  # of a model without its head
    found: dict[StoredLayer, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _LORA_TENSOR.fullmatch(name)
        if match is None or match[1] not in known:
            raise ValueError(
                f"the adapter's {name} belongs to no linear layer of this model's blocks; it was trained on another "
                f"base model, or adapts what cannot be adapted here (there are {_some(list(known))})"
            )
        found.setdefault(known[match[1]], {})[match[2]] = tensor
    if not found:
        raise ValueError("the adapter's file holds no update of any layer; it is empty or was cut short")
    return found


def _check_shapes(decoder: nn.Module, layer: StoredLayer, parts: Mapping[str, Tensor], *, dora: bool) -> None:
    wanted = {"A", "B", "magnitude_vector"} if dora else {"A", "B"}
    if set(parts) != wanted:
        raise ValueError(f"the adapter has {' and '.join(sorted(parts))} of {layer.name}, not {' and '.join(wanted)}")
    linear: list[Any] = [decoder.get_submodule(path) for path in layer.paths]
    inputs, outputs = linear[0].in_features, sum(each.out_features for each in linear)
    rank = len(parts["A"])
    shapes = {"A": (rank, inputs), "B": (outputs, rank), "magnitude_vector": (outputs,)}
    for part, tensor in parts.items():
        if tuple(tensor.shape) != shapes[part]:
            raise ValueError(
                f"the adapter was trained on another base model: {part} of {layer.name} is {tuple(tensor.shape)}, "
                f"and this model's layer, {inputs} to {outputs}, needs {shapes[part]}"
            )


def _matching(patterns: Mapping[str, Any], name: str, otherwise: float) -> float:
    """The value of the first pattern that a module's path ends with, as `peft` reads `alpha_pattern`."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return float(value)
    return otherwise


@torch.no_grad()
def _copy(parameter: Tensor, tensor: Tensor) -> None:
    parameter.copy_(tensor)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "") or "nothing"
