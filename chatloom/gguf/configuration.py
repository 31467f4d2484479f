"""A file's metadata and the `config.json` that it stands for, there and back."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatloom import models
from chatloom.gguf.architectures import Architecture
from chatloom.gguf.layouts import Shape
from chatloom.gguf.rope import rope_from, rope_metadata, shortest

Shapes = Mapping[str, tuple[int, ...]]  # of a file's tensors, by GGUF name

# Gemma's scores are divided by the root of the head's width, but for the models with so many layers.
_BY_MEAN_WIDTH = {"gemma2": 46, "gemma3": 62}
# Whose files say how wide a head is, and need not divide the model's width by the heads.
_SAYS_HEAD_WIDTH = ("llama", "qwen2", "qwen3", "qwen3moe", "glm4")
# Whose files name a width of the feed-forward part even where it is the usual one: 4 * width.
_USUAL_WIDTH = {"gpt2": "n_embd", "starcoder": "n_embd", "bloom": "hidden_size"}
# Fields that only training reads, and one that says nothing without a window.
_NOT_SAID = ("initializer_range", "window_from_layer", "load_balancing", "router_z")
EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


# --- reading ----------------------------------------------------------------------------------------------------


def config_from(
    metadata: Mapping[str, Any], architecture: Architecture, shapes: Shapes, factors: NDArray[np.float32] | None
) -> dict[str, Any]:
    """The `config.json` that a file stands for.

    Args:
        metadata: the file's.
        architecture: the row of its `general.architecture`.
        shapes: of its tensors, by GGUF name.
        factors: what its rotary frequencies are divided by, (D/2,), if it says so.
    """
    name = architecture.name
    config: dict[str, Any] = {"model_type": architecture.model_type, **architecture.fixed}
    for key, stored in architecture.keys.items():
        value = metadata.get(f"{name}.{stored}")
        if isinstance(value, np.ndarray):  # one number a layer, which must be the same
            if len(set(value.tolist())) != 1:
                raise ValueError(f"{name}.{stored} differs from layer to layer, which is not supported")
            value = value.tolist()[0]
        if value is not None:
            config[key] = shortest(value)
    config |= {key: tensor in shapes for key, tensor in architecture.seen.items()}
    config |= {"vocab_size": shapes[EMBEDDING][0], "tie_word_embeddings": _HEAD not in shapes}
    if name == "starcoder":
        config["multi_query"] = metadata.get("starcoder.attention.head_count_kv", 1) == 1
    if name in _BY_MEAN_WIDTH:
        config["query_pre_attn_scalar"] = _score_width(config, name)
    return config | rope_from(metadata, architecture, config, factors)


def _score_width(config: Shape, name: str) -> Any:
    heads, layers = config.get("num_attention_heads"), config.get("num_hidden_layers")
    if layers == _BY_MEAN_WIDTH[name] and isinstance(heads, int) and heads > 0:
        return config.get("hidden_size", 0) // heads
    return config.get("head_dim", 256)


# --- writing ----------------------------------------------------------------------------------------------------


def metadata_of(config: Shape, architecture: Architecture) -> dict[str, Any]:
    """Metadata of a `config.json`, by full key. Raises ValueError for what GGUF cannot say."""
    name = architecture.name
    rope = rope_metadata(config, name)
    found = {
        f"{name}.{stored}": config[key]
        for key, stored in architecture.keys.items()
        if config.get(key) is not None and f"{name}.{stored}" not in rope
    }
    if name in _USUAL_WIDTH:
        found.setdefault(f"{name}.feed_forward_length", 4 * config[_USUAL_WIDTH[name]])
    if name == "starcoder":
        found["starcoder.attention.head_count_kv"] = 1
    if name in _SAYS_HEAD_WIDTH:
        head_width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        found[f"{name}.attention.key_length"] = found[f"{name}.attention.value_length"] = head_width
    return found | rope


def check_said(
    config: Shape,
    metadata: Mapping[str, Any],
    architecture: Architecture,
    shapes: Shapes,
    factors: NDArray[np.float32] | None,
) -> None:
    """Read what is to be written: ValueError if it is another model, because GGUF has no place for what it does."""
    ours: Any = models.family(config["model_type"]).Config.from_huggingface(dict(config))
    read = models.family(architecture.model_type).Config.from_huggingface(
        config_from(metadata, architecture, shapes, factors)
    )
    for each in fields(ours):
        wanted, found = getattr(ours, each.name), getattr(read, each.name, None)
        if each.name in _NOT_SAID or wanted == found:
            continue
        if isinstance(wanted, float) and isinstance(found, float) and math.isclose(wanted, found, rel_tol=1e-6):
            continue
        if each.name == "window" and _window_is_idle(ours):
            continue
        if each.name == "inner_width" and wanted is None and found == 4 * ours.width:  # which is what None stands for
            continue
        raise ValueError(
            f"a {config['model_type']} with {each.name}={wanted!r} cannot be written as GGUF, where it would be "
            f"{found!r}; use --to hf"
        )


def _window_is_idle(ours: Any) -> bool:
    whole = ours.window is None or ours.window >= ours.context_length
    return whole or getattr(ours, "window_from_layer", 0) >= ours.num_layers
