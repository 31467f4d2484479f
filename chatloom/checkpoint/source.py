"""A model folder or a GGUF file, read but not yet a model: configuration, tensors, tokenizer and chat template.

What is read is not trusted: a configuration of a larger model than the file has weights for is refused before memory
is taken for it, and a pickle or code that a folder brings is never run.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from chatloom import catalogue, gguf, models, runtime
from chatloom.adapters import files as adapter_files
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import ChatTemplate
from chatloom.checkpoint.bases import base_of
from chatloom.checkpoint.state import latest_checkpoint
from chatloom.checkpoint.tensors import read_tensors
from chatloom.tokenizers.bpe import Tokenizer

WEIGHTS, INDEX, CONFIG, TEMPLATE = (
    "model.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "chat_template.jinja",
)
SCORE_HEAD = "score.weight"
_LONGEST_CONTEXT = 2**22  # tables of positions are made for it, so a broken config.json must not fill the memory
# Stands in for the template of a base model that has none: every use but reading and writing the folder is an error.
NO_TEMPLATE = (
    "{{ raise_exception('this model has no chat template, so it can continue text but not chat; "
    "fine-tune it first with `chatloom sft --chat-template plain`') }}"
)


@dataclass(frozen=True)
class Source:
    """A model folder or a GGUF file, read but not yet a model."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    chat: ChatFormat


def read_source(ref: Path | str, dtype: str | None) -> Source:
    """Read what a reference names. Raises ValueError for what is missing, damaged, unknown or does not fit."""
    path = catalogue.resolve(ref)
    if path.is_file():
        found = gguf.read_model(path)
        _check_size(found.config, [math.prod(shape) for shape in found.shapes.values()], path)
        tensors = found.tensors(runtime.pick_dtype(dtype) if dtype else None)
        return Source(path, found.config, tensors, ChatFormat(found.tokenizer, found.template or NO_TEMPLATE))
    if not (path / CONFIG).exists():
        raise ValueError(f"{path} has no {CONFIG}" + _hint(path))
    config = runtime.read_json(path / CONFIG)
    family_of(config)  # an unknown family is the first thing to say
    tensors = _read_weights(path)
    _check_size(config, [tensor.numel() for tensor in tensors.values()], path / CONFIG)
    return Source(path, config, tensors, load_chat(path))


def load_chat(ref: Path | str) -> ChatFormat:
    """A model's tokenizer and chat template, without its weights; an adapter without any has its base's."""
    path = catalogue.resolve(ref)
    if path.is_file():
        found = gguf.read_model(path)
        return ChatFormat(found.tokenizer, found.template or NO_TEMPLATE)
    if adapter_files.is_adapter(path) and not (path / "tokenizer.json").exists():
        return load_chat(base_of(path))
    return ChatFormat(Tokenizer.load(path), ChatTemplate.load(path) or ChatTemplate(NO_TEMPLATE))


def family_config(config: dict[str, Any], path: Path) -> Any:
    """A family's `Config` of a `config.json` that was read from `path`, which errors name."""
    module = family_of(config)
    try:
        return module.Config.from_huggingface(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except KeyError as error:
        raise ValueError(f"{path} has no {error}, which a {config['model_type']} needs") from error
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path} is not a configuration of a {config['model_type']}: {error}") from error


def _check_size(config: dict[str, Any], sizes: list[int], path: Path) -> None:
    """Refuse a configuration of a larger model than the file has weights for, before memory is taken for it."""
    known = family_config(config, path)
    for name in ("vocab_size", "context_length", "num_layers", "width", "num_heads", "head_width"):
        value = getattr(known, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{path}: {name} is {value!r}; it must be a whole number of at least 1")
    num_experts = getattr(known, "num_experts", 1)
    if not isinstance(num_experts, int) or not 1 <= known.num_layers * num_experts <= len(sizes):
        each = f" of {num_experts:,} experts" if hasattr(known, "num_experts") else ""
        raise ValueError(f"{path} asks for {known.num_layers:,} layers{each}, and there are {len(sizes)} tensors")
    check_length(known.context_length, f"{path} asks for a context of")
    try:
        with torch.device("meta"), Unfilled():
            wanted = models.num_parameters(family_of(config).Model(known))
    except (RuntimeError, TypeError, ArithmeticError, AssertionError) as error:
        raise ValueError(f"{path} describes no model that can be built: {error}") from error
    if wanted > 2 * sum(sizes) + 10_000_000:
        raise ValueError(
            f"{path} asks for {wanted:,} weights, and there are {sum(sizes):,}; they do not belong together"
        )


def check_length(context_length: int | None, what: str) -> None:
    """ValueError for a context that tables of positions would fill the memory for."""
    if context_length is not None and context_length > _LONGEST_CONTEXT:
        raise ValueError(f"{what} {context_length:,}; at most {_LONGEST_CONTEXT:,}")


class Unfilled(TorchFunctionMode):
    """Leaves out the drawing of fresh weights: they are about to be read, and torch's generator stays as it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init" or getattr(func, "__name__", "") in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


_DRAWS = ("normal_", "uniform_")


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if (folder / WEIGHTS).exists():
        return read_tensors(folder / WEIGHTS)
    if (folder / INDEX).exists():
        shards = _shards(folder / INDEX)
        tensors: dict[str, Tensor] = {}
        for shard in shards:
            tensors.update(read_tensors(folder / shard))
        return tensors
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for path in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"{folder} holds {pickles[0]}, a pickle, which can run code when it is read; only safetensors are read. "
            "Convert it with the publisher's tool or transformers' save_pretrained(safe_serialization=True)"
        )
    raise ValueError(f"{folder} has no {WEIGHTS}" + _hint(folder))


def _shards(index: Path) -> list[str]:
    """The files that an index names, beside it whatever folder it names too."""
    where = runtime.read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(each, str) for each in where.values()):
        raise ValueError(f"{index} has no weight_map of tensors to files; copy or download it again")
    return sorted({Path(each).name for each in where.values()})


def _hint(folder: Path) -> str:
    if latest_checkpoint(folder) is not None:
        return "; it is a run that has not finished: give its command again, and it goes on where it stopped"
    return "; a model folder holds config.json, model.safetensors and tokenizer.json"


def family_of(config: dict[str, Any]) -> Any:
    """The module of a `config.json`'s family. Raises ValueError listing those known."""
    name = config.get("model_type")
    if not isinstance(name, str):
        raise ValueError(f"config.json has no model_type; known families: {', '.join(models.FAMILIES)}")
    if name not in models.FAMILIES and "auto_map" in config:
        raise ValueError(
            f"model family {name!r} brings code of its own (auto_map), which is never run; use a family that is built "
            f"in, known: {', '.join(models.FAMILIES)}"
        )
    return models.family(name)
