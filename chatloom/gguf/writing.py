"""Write a model as a GGUF file that llama.cpp and what is built on it open.

Matrices are written in the type that is asked for, vectors and a mixture's routers in fp32, as llama.cpp has them;
q8_0 rounds to eight bits with a scale for each 32 weights, and what has rows of no such multiple stays f16.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, quants
from gguf.constants import GGMLQuantizationType as Kind
from gguf.constants import LlamaFileType
from torch import Tensor

from chatloom import models
from chatloom.gguf import architectures, configuration, rope, vocabulary
from chatloom.gguf.reading import ROPE, TEMPLATE
from chatloom.gguf.tensors import ROUTER, as_gguf, tensor_names
from chatloom.tokenizers.bpe import Tokenizer

TYPES: dict[str, tuple[Kind, LlamaFileType]] = {
    "fp32": (Kind.F32, LlamaFileType.ALL_F32),
    "f16": (Kind.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (Kind.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}


def write_model(
    path: Path,
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    *,
    tokenizer: Tokenizer,
    template: str | None,
    end_of_turn: int | None,
    kind: str,
    name: str,
) -> None:
    """Write a GGUF file, whole or not at all.

    Args:
        path: where.
        tensors: by Hugging Face name.
        config: the model's `config.json`.
        tokenizer: padded to the model's vocabulary.
        template: the chat template, None for a base model.
        end_of_turn: the token that ends a reply, at which other programs stop too; None for a base model.
        kind: one of `TYPES`.
        name: the model's, for people.

    Raises:
        ValueError: a family, tokenizer or feature that GGUF has no name for.
    """
    architecture = architectures.architecture_for(config["model_type"])
    module = models.family(config["model_type"])
    num_layers = module.Config.from_huggingface(config).num_layers
    ready = as_gguf(tensors, tensor_names(module, architecture.name, num_layers), architecture, config)
    metadata = configuration.metadata_of(config, architecture)
    shapes = {stored: tuple(tensor.shape) for stored, tensor in ready.items()}
    factors = rope.rope_factors(config, metadata, architecture.name)
    configuration.check_said(config, metadata, architecture, shapes, factors)
    metadata |= vocabulary.metadata_of(tokenizer, config["vocab_size"])
    if end_of_turn is not None:
        metadata["tokenizer.ggml.eot_token_id"] = end_of_turn
        metadata.setdefault("tokenizer.ggml.eos_token_id", end_of_turn)
    if template is not None:
        metadata[TEMPLATE] = template
    number, file_type = TYPES[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        writer = GGUFWriter(temporary, architecture.name)
        writer.add_name(name)
        writer.add_file_type(file_type)
        writer.add_quantization_version(2)
        for key, value in metadata.items():
            _add(writer, key, value)
        if factors is not None:
            writer.add_tensor(ROPE, factors)
        for stored, tensor in ready.items():
            _add_tensor(writer, stored, tensor, number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_array(key, value)


def _add_tensor(writer: GGUFWriter, name: str, tensor: Tensor, kind: Kind) -> None:
    values = np.ascontiguousarray(tensor.detach().cpu().numpy(), np.float32)
    if values.ndim < 2 or kind == Kind.F32 or name.endswith(ROUTER):
        writer.add_tensor(name, values)
        return
    if kind == Kind.Q8_0 and values.shape[-1] % 32:
        kind = Kind.F16
    writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
