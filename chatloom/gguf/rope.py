"""Rotary positions in GGUF: which channels turn, how fast, and how that is scaled for a longer context.

The factors of LLaMA 3.1 stand in a file as their result alone, one for each frequency (rope_freqs), so its other
numbers are those that every model has kept.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatloom import models
from chatloom.gguf.architectures import Architecture
from chatloom.gguf.layouts import Shape

# What a file does not say of LLaMA 3.1's rotary scaling.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# Whose files say how many channels of a head turn.
_SAYS_CHANNELS = ("llama", "qwen2", "qwen3", "qwen3moe", "glm4", "stablelm", "gptneox", "phi3")


def shortest(value: Any) -> Any:
    """A number that went through fp32 as a person wrote it: 9.99999974e-06 is 1e-05."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


# --- reading ----------------------------------------------------------------------------------------------------


def rope_from(
    metadata: Mapping[str, Any], architecture: Architecture, config: Shape, factors: NDArray[np.float32] | None
) -> dict[str, Any]:
    """What `config.json` says of positions, of a file whose other metadata stand in `config` already."""
    found = _scaling(metadata, architecture.name, config)
    if factors is not None and not np.all(factors == 1):
        found["rope_parameters"] = llama3_rope(factors, config)
    if architecture.name == "gemma3" and "rope_parameters" in found:
        found["rope_parameters"] = {"full_attention": found["rope_parameters"]}
    return found | _width(metadata, architecture, config)


def _scaling(metadata: Mapping[str, Any], name: str, config: Shape) -> dict[str, Any]:
    kind = metadata.get(f"{name}.rope.scaling.type", "none")
    theta = config.get("rope_theta")
    if kind == "none":
        return {} if theta is None else {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    rope: dict[str, Any] = {"rope_type": kind, "factor": shortest(metadata.get(f"{name}.rope.scaling.factor", 1.0))}
    original = metadata.get(f"{name}.rope.scaling.original_context_length")
    if original is not None:
        rope["original_max_position_embeddings"] = original
    return {"rope_parameters": rope | {"rope_theta": 10_000.0 if theta is None else theta}}


def _width(metadata: Mapping[str, Any], architecture: Architecture, config: Shape) -> dict[str, Any]:
    """The head's width where the file leaves it to division, and the share of its channels that turn.

    Raises ValueError if not all turn in a family that knows no such share.
    """
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if not (isinstance(heads, int) and isinstance(width, int) and 0 < heads <= width):
        return {}
    found: dict[str, Any] = {}
    head_width = config.get("head_dim")
    if head_width is None:
        head_width = width // heads
        if "head_dim" in architecture.keys:
            found["head_dim"] = head_width
    turned = metadata.get(f"{architecture.name}.rope.dimension_count")
    if not (isinstance(turned, int) and isinstance(head_width, int) and head_width > 0):
        return found
    family: Any = models.family(architecture.model_type).Config
    if any(each.name == "rotary_share" for each in fields(family)):
        found["partial_rotary_factor"] = found["rotary_pct"] = turned / head_width
    elif turned != head_width:
        raise ValueError(
            f"{architecture.name}.rope.dimension_count is {turned}, and a head is {head_width} wide; positions that "
            f"turn a part of a head are not supported in a {architecture.model_type}"
        )
    return found


def llama3_rope(stored: NDArray[np.float32], config: Shape) -> dict[str, Any]:
    """`rope_parameters` that the factors of a file stand for, which holds their result alone (rope_freqs).

    Raises ValueError where they are not those of LLaMA 3.1, whose other numbers every model has kept.
    """
    theta = float(config.get("rope_theta", 10_000.0))
    factor = float(stored.max())
    if not np.allclose(llama3_factors(2 * stored.size, theta, factor), stored, rtol=1e-3):
        raise ValueError("rope_freqs.weight scales rotary positions in a way that is not LLaMA 3.1's")
    return {"rope_type": "llama3", "rope_theta": theta, "factor": factor, **LLAMA3}


def llama3_factors(head_width: int, theta: float, factor: float) -> NDArray[np.float32]:
    """By how much LLaMA 3.1 slows each rotary frequency, (D/2,): long waves by `factor`, short ones not at all."""
    frequencies = theta ** (-np.arange(0, head_width, 2, dtype=np.float64) / head_width)
    turns = LLAMA3["original_max_position_embeddings"] * frequencies / (2 * np.pi)  # in the context of pretraining
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - share) / factor + share)).astype(np.float32)


# --- writing ----------------------------------------------------------------------------------------------------


def rope_metadata(config: Shape, name: str) -> dict[str, Any]:
    """Metadata of positions, by full key. Raises ValueError for a scaling that GGUF cannot say."""
    rope = _full_rope(config)
    found: dict[str, Any] = {}
    if "rope_theta" in rope:
        found[f"{name}.rope.freq_base"] = rope["rope_theta"]
    if name in _SAYS_CHANNELS:
        share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", config.get("rotary_pct", 1.0)))
        head_width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        found[f"{name}.rope.dimension_count"] = int(head_width * share)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("linear", "yarn"):
        found[f"{name}.rope.scaling.type"] = kind
        found[f"{name}.rope.scaling.factor"] = float(rope["factor"])
        if "original_max_position_embeddings" in rope:
            found[f"{name}.rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    elif kind == "llama3" and not LLAMA3.items() <= rope.items():
        raise ValueError(f"LLaMA 3's rotary scaling with other numbers than {LLAMA3} cannot be written; use --to hf")
    elif kind not in ("default", "llama3"):
        raise ValueError(f"rotary positions of kind {kind!r} cannot be written as GGUF yet; use --to hf")
    return found


def rope_factors(config: Shape, metadata: Mapping[str, Any], name: str) -> NDArray[np.float32] | None:
    """The factors that are to be written for a `config.json`, if there are any."""
    rope = _full_rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    return llama3_factors(metadata[f"{name}.rope.dimension_count"], rope["rope_theta"], rope["factor"])


def _full_rope(config: Shape) -> Mapping[str, Any]:
    """How the layers that see everything turn."""
    rope: Mapping[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    full: Mapping[str, Any] = rope.get("full_attention", rope)
    return full
