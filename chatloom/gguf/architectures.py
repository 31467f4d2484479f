"""What GGUF calls an architecture, and how its configuration and tensors become those of a Hugging Face folder.

A model of `general.architecture` is read as if it were the `config.json` and the tensors of its `model_type`; the
family does the rest. `ARCHITECTURES` is the whole table: to add one, name its `model_type` and the metadata key of
each `config.json` key. Tensor names are those of the `gguf` package, found from the family's own `WEIGHT_NAMES`.

Some tensors lie differently in the two formats; each reason stands at its function:
llama's queries and keys are reordered, GPT-2's matrices turned, Gemma's norms hold 1 + weight, BLOOM's and NeoX's
joined query/key/value matrices are sorted by part and not by head.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import Any

import numpy as np
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
from gguf.tensor_mapping import get_tensor_name_map
from numpy.typing import NDArray
from torch import Tensor

from chatloom import models
from chatloom.config import nearest
from chatloom.models.weights import Joined

Shape = Mapping[str, Any]  # a config.json
Shapes = Mapping[str, tuple[int, ...]]  # of a file's tensors, by GGUF name
Change = Callable[[str, Tensor, Shape], Tensor]  # (Hugging Face name, tensor, config.json) -> tensor


def _same(name: str, tensor: Tensor, config: Shape) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    `keys`: config.json key -> metadata key without `architecture.`; `seen`: config.json key -> the tensor that is there
    if it is true.
    """

    model_type: str
    keys: Mapping[str, str]
    seen: Mapping[str, str] = field(default_factory=dict)
    from_gguf: Change = _same
    to_gguf: Change = _same


# --- tensors that lie differently -------------------------------------------------------------------------------


def _heads(name: str, config: Shape) -> int | None:
    """Heads of a query or key projection, None for every other tensor."""
    if ".q_proj." in name:
        return int(config["num_attention_heads"])
    if ".k_proj." in name:
        return int(config.get("num_key_value_heads") or config["num_attention_heads"])
    return None


def _pairs_together(name: str, tensor: Tensor, config: Shape) -> Tensor:
    """llama.cpp turns neighbouring channels (2i, 2i + 1), Hugging Face channels i and i + D/2 of a head."""
    heads = _heads(name, config)
    if heads is None:
        return tensor
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _pairs_apart(name: str, tensor: Tensor, config: Shape) -> Tensor:
    heads = _heads(name, config)
    if heads is None:
        return tensor
    return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _turned(name: str, tensor: Tensor, config: Shape) -> Tensor:
    """GPT-2's own matrices are (inputs, outputs), those of every other model (outputs, inputs)."""
    is_turned = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
    return tensor.t().contiguous() if is_turned else tensor


def _plus_one(name: str, tensor: Tensor, config: Shape) -> Tensor:
    """Gemma multiplies by 1 + weight, and llama.cpp stores that sum."""
    return tensor + 1 if name.endswith("norm.weight") else tensor


def _minus_one(name: str, tensor: Tensor, config: Shape) -> Tensor:
    return tensor - 1 if name.endswith("norm.weight") else tensor


def _joined_by_part(name: str, tensor: Tensor, config: Shape) -> Tensor:
    """(heads, 3, D) of BLOOM and NeoX becomes (3, heads, D)."""
    heads = config.get("num_attention_heads") or config["n_head"]
    if "query_key_value" not in name:
        return tensor
    return tensor.reshape(heads, 3, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def _joined_by_head(name: str, tensor: Tensor, config: Shape) -> Tensor:
    heads = config.get("num_attention_heads") or config["n_head"]
    if "query_key_value" not in name:
        return tensor
    return tensor.reshape(3, heads, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


# --- the table --------------------------------------------------------------------------------------------------

_COMMON = {
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
}
_LLAMA_LIKE = _COMMON | {
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rope_theta": "rope.freq_base",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "sliding_window": "attention.sliding_window",
}
_GEMMA2 = _LLAMA_LIKE | {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        "llama",
        _LLAMA_LIKE,
        {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"},
        from_gguf=_pairs_apart,
        to_gguf=_pairs_together,
    ),
    "qwen2": Architecture("qwen2", _LLAMA_LIKE),
    "qwen3": Architecture("qwen3", _LLAMA_LIKE),
    "phi3": Architecture("phi3", _LLAMA_LIKE),
    "gemma2": Architecture("gemma2", _GEMMA2, from_gguf=_minus_one, to_gguf=_plus_one),
    "gemma3": Architecture("gemma3_text", _LLAMA_LIKE, from_gguf=_minus_one, to_gguf=_plus_one),
    "stablelm": Architecture(
        "stablelm",
        _COMMON
        | {
            "num_key_value_heads": "attention.head_count_kv",
            "rope_theta": "rope.freq_base",
            "layer_norm_eps": "attention.layer_norm_epsilon",
            "use_parallel_residual": "use_parallel_residual",
        },
        {"use_qkv_bias": "blk.0.attn_q.bias"},
    ),
    "gpt2": Architecture(
        "gpt2",
        {
            "n_positions": "context_length",
            "n_layer": "block_count",
            "n_embd": "embedding_length",
            "n_inner": "feed_forward_length",
            "n_head": "attention.head_count",
            "layer_norm_epsilon": "attention.layer_norm_epsilon",
        },
        from_gguf=_turned,
        to_gguf=_turned,
    ),
    "gptneox": Architecture(
        "gpt_neox",
        _COMMON
        | {
            "rotary_emb_base": "rope.freq_base",
            "layer_norm_eps": "attention.layer_norm_epsilon",
            "use_parallel_residual": "use_parallel_residual",
        },
        from_gguf=_joined_by_head,
        to_gguf=_joined_by_part,
    ),
    "bloom": Architecture(
        "bloom",
        {
            "seq_length": "context_length",
            "n_layer": "block_count",
            "hidden_size": "embedding_length",
            "n_head": "attention.head_count",
            "layer_norm_epsilon": "attention.layer_norm_epsilon",
        },
        from_gguf=_joined_by_head,
        to_gguf=_joined_by_part,
    ),
}
# What a file does not say of LLaMA 3.1's rotary scaling.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# Other `model_type`s that llama.cpp runs as one of these.
_RUN_AS = {"mistral": "llama"}
# Gemma's scores are divided by the root of the head's width, but for the models with so many layers.
_BY_MEAN_WIDTH = {"gemma2": 46, "gemma3": 62}
# Fields that only training reads, and one that says nothing without a window.
_NOT_SAID = ("initializer_range", "window_from_layer")
EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


def architecture_of(name: Any, path: object) -> Architecture:
    """The row of a file's `general.architecture`. Raises ValueError listing those known."""
    if not isinstance(name, str):
        raise ValueError(f"{path} names no general.architecture; known: {', '.join(ARCHITECTURES)}")
    if name not in ARCHITECTURES:
        raise ValueError(f"{path}: GGUF architecture {name!r} is unknown{nearest(name, ARCHITECTURES)}")
    return ARCHITECTURES[name]


def name_of(model_type: str) -> str:
    """The `general.architecture` of a family. Raises ValueError listing those that can be written."""
    for name, architecture in ARCHITECTURES.items():
        if architecture.model_type == model_type:
            return name
    if model_type in _RUN_AS:
        return _RUN_AS[model_type]
    known = ", ".join([each.model_type for each in ARCHITECTURES.values()] + list(_RUN_AS))
    raise ValueError(f"a {model_type} cannot be written as GGUF; known: {known}. Use --to hf")


# --- configuration ----------------------------------------------------------------------------------------------


def config_from(
    metadata: Mapping[str, Any],
    name: str,
    architecture: Architecture,
    shapes: Shapes,
    factors: NDArray[np.float32] | None,
) -> dict[str, Any]:
    """The `config.json` that a file stands for.

    Args:
        metadata: the file's.
        name: its `general.architecture`.
        architecture: the row of that.
        shapes: of its tensors, by GGUF name.
        factors: what its rotary frequencies are divided by, (D/2,), if it says so.
    """
    config: dict[str, Any] = {"model_type": architecture.model_type}
    for key, stored in architecture.keys.items():
        value = metadata.get(f"{name}.{stored}")
        if isinstance(value, np.ndarray):  # one number a layer, which must be the same
            if len(set(value.tolist())) != 1:
                raise ValueError(f"{name}.{stored} differs from layer to layer, which is not supported")
            value = value.tolist()[0]
        if value is not None:
            config[key] = _shortest(value)
    config |= {key: tensor in shapes for key, tensor in architecture.seen.items()}
    config |= {"vocab_size": shapes[EMBEDDING][0], "tie_word_embeddings": _HEAD not in shapes}
    if name in _BY_MEAN_WIDTH:
        config["query_pre_attn_scalar"] = _score_width(config, name)
    config |= _rope(metadata, name, config)
    if factors is not None and not np.all(factors == 1):
        config["rope_parameters"] = llama3_rope(factors, config)
    if name == "gemma3" and "rope_parameters" in config:
        config["rope_parameters"] = {"full_attention": config["rope_parameters"]}
    _check_rotary_width(metadata, name, config)
    return config


def _score_width(config: Shape, name: str) -> Any:
    heads, layers = config.get("num_attention_heads"), config.get("num_hidden_layers")
    if layers == _BY_MEAN_WIDTH[name] and isinstance(heads, int) and heads > 0:
        return config.get("hidden_size", 0) // heads
    return config.get("head_dim", 256)


def check_said(
    config: Shape, metadata: Mapping[str, Any], name: str, shapes: Shapes, factors: NDArray[np.float32] | None
) -> None:
    """Read what is to be written: ValueError if it is another model, because GGUF has no place for what it does."""
    ours: Any = models.family(config["model_type"]).Config.from_huggingface(dict(config))
    architecture = ARCHITECTURES[name]
    read = models.family(architecture.model_type).Config.from_huggingface(
        config_from(metadata, name, architecture, shapes, factors)
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


def _shortest(value: Any) -> Any:
    """A number that went through fp32 as a person wrote it: 9.99999974e-06 is 1e-05."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _rope(metadata: Mapping[str, Any], name: str, config: Shape) -> dict[str, Any]:
    kind = metadata.get(f"{name}.rope.scaling.type", "none")
    theta = config.get("rope_theta")
    if kind == "none":
        return {} if theta is None else {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    rope: dict[str, Any] = {"rope_type": kind, "factor": _shortest(metadata.get(f"{name}.rope.scaling.factor", 1.0))}
    original = metadata.get(f"{name}.rope.scaling.original_context_length")
    if original is not None:
        rope["original_max_position_embeddings"] = original
    return {"rope_parameters": rope | {"rope_theta": 10_000.0 if theta is None else theta}}


def llama3_factors(head_width: int, theta: float, factor: float) -> NDArray[np.float32]:
    """By how much LLaMA 3.1 slows each rotary frequency, (D/2,): long waves by `factor`, short ones not at all."""
    frequencies = theta ** (-np.arange(0, head_width, 2, dtype=np.float64) / head_width)
    turns = LLAMA3["original_max_position_embeddings"] * frequencies / (2 * np.pi)  # in the context of pretraining
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - share) / factor + share)).astype(np.float32)


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


def llama3_rope(stored: NDArray[np.float32], config: Shape) -> dict[str, Any]:
    """`rope_parameters` that the factors of a file stand for, which holds their result alone (rope_freqs).

    Raises ValueError where they are not those of LLaMA 3.1, whose other numbers every model has kept.
    """
    theta = float(config.get("rope_theta", 10_000.0))
    factor = float(stored.max())
    if not np.allclose(llama3_factors(2 * stored.size, theta, factor), stored, rtol=1e-3):
        raise ValueError("rope_freqs.weight scales rotary positions in a way that is not LLaMA 3.1's")
    return {"rope_type": "llama3", "rope_theta": theta, "factor": factor, **LLAMA3}


def _check_rotary_width(metadata: Mapping[str, Any], name: str, config: dict[str, Any]) -> None:
    """Note the share of a head's channels that turn, for families that know one; refuse it for the others."""
    turned = metadata.get(f"{name}.rope.dimension_count")
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if not (isinstance(turned, int) and isinstance(heads, int) and isinstance(width, int) and heads > 0):
        return
    head_width = config.get("head_dim") or width // heads
    if turned != head_width and head_width > 0:
        config["partial_rotary_factor"] = config["rotary_pct"] = turned / head_width


def metadata_of(config: Shape, name: str) -> dict[str, Any]:
    """Metadata of a `config.json`, by full key. Raises ValueError for what GGUF cannot say."""
    rope = _full_rope(config)
    config = {**config, **{key: rope[key] for key in ("rope_theta",) if key in rope}}
    found = {
        f"{name}.{stored}": config[key]
        for key, stored in ARCHITECTURES[name].keys.items()
        if config.get(key) is not None
    }
    if name == "gpt2":
        found.setdefault("gpt2.feed_forward_length", 4 * config["n_embd"])
    if name == "bloom":
        found["bloom.feed_forward_length"] = 4 * config["hidden_size"]
    if name in ("llama", "qwen2", "qwen3"):
        head_width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        found[f"{name}.rope.dimension_count"] = found[f"{name}.attention.key_length"] = head_width
        found[f"{name}.attention.value_length"] = head_width
    if name in ("stablelm", "gptneox", "phi3"):
        share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", config.get("rotary_pct", 1.0)))
        width = config["hidden_size"] // config["num_attention_heads"]
        found[f"{name}.rope.dimension_count"] = int(width * share)
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


# --- tensor names -----------------------------------------------------------------------------------------------


_ENDS = (".weight", ".bias")


def tensor_names(module: ModuleType, name: str, num_layers: int) -> dict[str, str]:
    """GGUF name -> Hugging Face name of every tensor of a family's model."""
    number = next(number for number, each in MODEL_ARCH_NAMES.items() if each == name)
    known = get_tensor_name_map(MODEL_ARCH(number), num_layers)
    own: Mapping[str, str | Joined] = getattr(module, "GGUF_NAMES", {})  # where a family knows better
    names: dict[str, str] = {}
    for stored in module.WEIGHT_NAMES:
        for layer in range(num_layers) if "{layer}" in stored else (0,):
            theirs = stored.replace("{layer}", str(layer))
            short = theirs.split(".", 1)[1]  # BLOOM's are listed without `transformer.`
            ours = own.get(stored) or next(
                filter(None, (known.get_name(each, _ENDS) for each in (theirs, short))), None
            )
            if ours is not None:
                names[str(ours).replace("{layer}", str(layer))] = theirs
    return names


def as_huggingface(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], architecture: Architecture, config: Shape
) -> dict[str, Tensor]:
    """Tensors by Hugging Face name; one without a name there keeps its own, and the family will refuse it."""
    found = {}
    for name, tensor in tensors.items():
        theirs = names.get(name, name)
        found[theirs] = architecture.from_gguf(theirs, tensor, config)
    return found


def as_gguf(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], architecture: Architecture, config: Shape
) -> dict[str, Tensor]:
    """Tensors by GGUF name. Raises ValueError for one that GGUF has no name for."""
    ours = {theirs: name for name, theirs in names.items()}
    missing = sorted(name for name in tensors if name not in ours)
    if missing:
        raise ValueError(f"GGUF has no name for {', '.join(missing[:4])} of this model; use --to hf")
    return {ours[name]: architecture.to_gguf(name, tensor, config).float() for name, tensor in tensors.items()}
