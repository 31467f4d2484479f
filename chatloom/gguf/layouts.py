"""Tensors that lie differently in GGUF and in a Hugging Face folder, there and back.

llama's queries and keys are reordered, GPT-2's matrices turned, Gemma's norms hold 1 + weight, BLOOM's and NeoX's
joined query/key/value matrices are sorted by part and not by head. Each reason stands at its function.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Shape = Mapping[str, Any]  # a config.json
Change = Callable[[str, Tensor, Shape], Tensor]  # (Hugging Face name, tensor, config.json) -> tensor


def same(name: str, tensor: Tensor, config: Shape) -> Tensor:
    """Most lie the same."""
    return tensor


def _heads(name: str, config: Shape) -> int | None:
    """Heads of a query or key projection, None for every other tensor."""
    if ".q_proj." in name:
        return int(config["num_attention_heads"])
    if ".k_proj." in name:
        return int(config.get("num_key_value_heads") or config["num_attention_heads"])
    return None


def pairs_together(name: str, tensor: Tensor, config: Shape) -> Tensor:
    """llama.cpp turns neighbouring channels (2i, 2i + 1), Hugging Face channels i and i + D/2 of a head."""
    heads = _heads(name, config)
    if heads is None:
        return tensor
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def pairs_apart(name: str, tensor: Tensor, config: Shape) -> Tensor:
    """Undo of `pairs_together`."""
    heads = _heads(name, config)
    if heads is None:
        return tensor
    return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def turned(name: str, tensor: Tensor, config: Shape) -> Tensor:
    """GPT-2's own matrices are (inputs, outputs), those of every other model (outputs, inputs)."""
    is_turned = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
    return tensor.t().contiguous() if is_turned else tensor


def plus_one(name: str, tensor: Tensor, config: Shape) -> Tensor:
    """Gemma multiplies by 1 + weight, and llama.cpp stores that sum."""
    return tensor + 1 if name.endswith("norm.weight") else tensor


def minus_one(name: str, tensor: Tensor, config: Shape) -> Tensor:
    """Undo of `plus_one`."""
    return tensor - 1 if name.endswith("norm.weight") else tensor


def joined_by_part(name: str, tensor: Tensor, config: Shape) -> Tensor:
    """(heads, 3, D) of BLOOM and NeoX becomes (3, heads, D)."""
    heads = config.get("num_attention_heads") or config["n_head"]
    if "query_key_value" not in name:
        return tensor
    return tensor.reshape(heads, 3, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def joined_by_head(name: str, tensor: Tensor, config: Shape) -> Tensor:
    """Undo of `joined_by_part`."""
    heads = config.get("num_attention_heads") or config["n_head"]
    if "query_key_value" not in name:
        return tensor
    return tensor.reshape(3, heads, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)
