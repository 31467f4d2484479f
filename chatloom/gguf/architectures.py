"""What GGUF calls an architecture, and which family's `config.json` a file of it stands for.

A model of `general.architecture` is read as if it were the `config.json` and the tensors of its `model_type`; the
family does the rest. `ARCHITECTURES` is the whole table: to add one, name its `model_type` and the metadata key of
each `config.json` key. `llama` is LLaMA, or Mixtral if the file has experts; Mistral is written as `llama` too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chatloom.config import nearest
from chatloom.gguf import layouts
from chatloom.gguf.layouts import Change


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    `keys`: config.json key -> metadata key without `architecture.`; `seen`: config.json key -> the tensor that is there
    if it is true; `fixed`: what llama.cpp takes for granted of every such model; `mixture`: its files have experts.
    """

    name: str
    model_type: str
    keys: Mapping[str, str]
    seen: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    from_gguf: Change = layouts.same
    to_gguf: Change = layouts.same
    mixture: bool = False


_COMMON = {
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
}
_FULL_LLAMA = _COMMON | {
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rope_theta": "rope.freq_base",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_LLAMA_LIKE = _FULL_LLAMA | {"sliding_window": "attention.sliding_window"}
_GEMMA2 = _LLAMA_LIKE | {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_GPT2 = {
    "n_positions": "context_length",
    "n_layer": "block_count",
    "n_embd": "embedding_length",
    "n_inner": "feed_forward_length",
    "n_head": "attention.head_count",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}
_QUERY_BIAS = "blk.0.attn_q.bias"

_ROWS = (
    Architecture(
        "llama",
        "llama",
        _LLAMA_LIKE,
        {"attention_bias": _QUERY_BIAS, "mlp_bias": "blk.0.ffn_gate.bias"},
        from_gguf=layouts.pairs_apart,
        to_gguf=layouts.pairs_together,
    ),
    Architecture(
        "llama",
        "mixtral",
        _FULL_LLAMA | {"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"},
        from_gguf=layouts.pairs_apart,
        to_gguf=layouts.pairs_together,
        mixture=True,
    ),
    Architecture("qwen2", "qwen2", _LLAMA_LIKE),
    Architecture("qwen3", "qwen3", _LLAMA_LIKE),
    Architecture(
        "qwen3moe",
        "qwen3_moe",
        {
            **{key: stored for key, stored in _FULL_LLAMA.items() if key != "intermediate_size"},
            "moe_intermediate_size": "expert_feed_forward_length",
            "num_experts": "expert_count",
            "num_experts_per_tok": "expert_used_count",
        },
        {"attention_bias": _QUERY_BIAS},
        {"norm_topk_prob": True},
        mixture=True,
    ),
    Architecture("phi3", "phi3", _LLAMA_LIKE),
    Architecture("glm4", "glm4", _FULL_LLAMA, {"attention_bias": _QUERY_BIAS}),
    Architecture("gemma2", "gemma2", _GEMMA2, from_gguf=layouts.minus_one, to_gguf=layouts.plus_one),
    Architecture("gemma3", "gemma3_text", _LLAMA_LIKE, from_gguf=layouts.minus_one, to_gguf=layouts.plus_one),
    Architecture(
        "stablelm",
        "stablelm",
        _COMMON
        | {
            "num_key_value_heads": "attention.head_count_kv",
            "rope_theta": "rope.freq_base",
            "layer_norm_eps": "attention.layer_norm_epsilon",
            "use_parallel_residual": "use_parallel_residual",
        },
        {"use_qkv_bias": _QUERY_BIAS},
    ),
    Architecture("gpt2", "gpt2", _GPT2, from_gguf=layouts.turned, to_gguf=layouts.turned),
    Architecture("starcoder", "gpt_bigcode", _GPT2),
    Architecture(
        "gptneox",
        "gpt_neox",
        _COMMON
        | {
            "rotary_emb_base": "rope.freq_base",
            "layer_norm_eps": "attention.layer_norm_epsilon",
            "use_parallel_residual": "use_parallel_residual",
        },
        from_gguf=layouts.joined_by_head,
        to_gguf=layouts.joined_by_part,
    ),
    Architecture(
        "bloom",
        "bloom",
        {
            "seq_length": "context_length",
            "n_layer": "block_count",
            "hidden_size": "embedding_length",
            "n_head": "attention.head_count",
            "layer_norm_epsilon": "attention.layer_norm_epsilon",
        },
        from_gguf=layouts.joined_by_head,
        to_gguf=layouts.joined_by_part,
    ),
)
# By `model_type`.
ARCHITECTURES: dict[str, Architecture] = {row.model_type: row for row in _ROWS}
# Other `model_type`s that llama.cpp runs as one of these.
RUN_AS = {"mistral": "llama"}


def architecture_of(metadata: Mapping[str, Any], path: object) -> Architecture:
    """The row of a file's metadata. Raises ValueError listing the architectures that are known."""
    name = metadata.get("general.architecture")
    rows = [row for row in _ROWS if row.name == name]
    known = list(dict.fromkeys(row.name for row in _ROWS))
    if not isinstance(name, str):
        raise ValueError(f"{path} names no general.architecture; known: {', '.join(known)}")
    if not rows:
        raise ValueError(f"{path}: GGUF architecture {name!r} is unknown{nearest(name, known)}")
    has_experts = bool(metadata.get(f"{name}.expert_count"))
    return next((row for row in rows if row.mixture == has_experts), rows[0])


def architecture_for(model_type: str) -> Architecture:
    """The row that a family is written as. Raises ValueError listing those that can be written."""
    found = ARCHITECTURES.get(RUN_AS.get(model_type, model_type))
    if found is None:
        known = ", ".join([*ARCHITECTURES, *RUN_AS])
        raise ValueError(f"a {model_type} cannot be written as GGUF; known: {known}. Use --to hf")
    return found
