"""Out again: a model as a Hugging Face folder or as a GGUF file, for every other tool.

What transformers or vLLM is to open goes `--to hf`; llama.cpp and what is built on it read `--to gguf`. The tokenizer,
the chat template and the token that ends a turn go with it, so that a conversation is the same tokens there as here.
An adapted model leaves as one set of weights, or (`--adapter keep`) as its base beside its adapter, as `peft` has it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape

from chatloom import adapters, checkpoint, gguf, runtime
from chatloom.models import num_parameters

Dtype = Literal["fp32", "f16", "bf16", "q8_0"]
BASE, ADAPTER = "base", "adapter"
_TORCH_NAMES = {"fp32": "fp32", "f16": "fp16", "bf16": "bf16"}


@dataclass(frozen=True)
class Config:
    """Write a model for other programs."""

    # What to export: a run, a Hugging Face folder, a .gguf file, a hub id or a name of the catalogue.
    model: str
    # The folder (hf) or the .gguf file (gguf) to write.
    output: str
    # hf: a Hugging Face folder. gguf: one file for llama.cpp.
    to: Literal["hf", "gguf"] = "hf"
    # Number type of the matrices; q8_0 (eight bits and a scale for each 32) is for gguf. None: as the model was saved.
    dtype: Dtype | None = None
    # An adapted model's adapter. merge: written into the weights. keep: OUTPUT/base is the base model, and
    # OUTPUT/adapter the adapter, which peft puts on it; for hf.
    adapter: Literal["merge", "keep"] = "merge"

    def __post_init__(self) -> None:
        if self.to == "hf" and self.dtype == "q8_0":
            raise ValueError("q8_0 is a number type of GGUF; a Hugging Face folder takes fp32, f16 or bf16")
        if self.to == "gguf" and not self.output.endswith(".gguf"):
            raise ValueError(f"--output {self.output} must end in .gguf, by which other programs know the file")
        if self.to == "gguf" and self.adapter == "keep":
            raise ValueError(
                "a .gguf file is one set of weights and keeps no adapter beside it; use --adapter merge, or --to hf "
                "for a base and its adapter"
            )


def run(config: Config) -> None:
    """Load, write, and say what was written. Raises ValueError for what cannot be exported; overwrites nothing."""
    output = Path(config.output).expanduser()
    if output.is_file() or (output.is_dir() and (config.to == "gguf" or any(output.iterdir()))):
        raise ValueError(f"--output {output} exists already; name another, or delete it first")
    if config.adapter == "keep":
        opened = _keep(config, output)
    else:
        opened = checkpoint.load_pretrained(config.model, dtype=_loaded_as(config))
        if adapters.is_adapted(opened.model):
            raise ValueError(
                f"{config.model} has virtual tokens before its text, which cannot be written into the weights; use "
                "--to hf --adapter keep"
            )
    dtype = config.dtype or _saved_as(opened)
    if config.to == "gguf":
        write_gguf(output, opened, dtype, name=Path(config.model).stem or config.model)
    elif config.adapter == "merge":
        checkpoint.save_pretrained(output, opened.model, opened.chat)
    size = sum(file.stat().st_size for file in (output.rglob("*") if output.is_dir() else [output]) if file.is_file())
    _say(f"{output}: {num_parameters(opened.model) / 1e6:,.1f}M parameters as {dtype}, {size / 1e6:,.1f} MB")


def _keep(config: Config, output: Path) -> checkpoint.Pretrained:
    """Write the base and the adapter as folders of `output`; the adapter names the base that was written."""
    path = checkpoint.adapter_folder(config.model)
    if path is None:
        raise ValueError(f"{config.model} has no adapter that could be kept; leave out --adapter keep")
    adapted = checkpoint.load_pretrained(path, dtype=_loaded_as(config), merge=False)
    base = checkpoint.load_pretrained(
        checkpoint.base_of(path), dtype=_loaded_as(config), context=checkpoint.context_of(path)
    )
    checkpoint.save_pretrained(output / BASE, base.model, base.chat)
    checkpoint.save_adapter(output / ADAPTER, adapted.model, adapted.chat, base=str(output / BASE))
    return adapted


def write_gguf(path: Path, opened: checkpoint.Pretrained, dtype: str, *, name: str) -> None:
    """Write an opened model as GGUF. Raises ValueError for a family or tokenizer that GGUF has no name for."""
    chat = opened.chat
    has_template = chat.template.source != checkpoint.NO_TEMPLATE
    config, tensors = checkpoint.stored(opened.model)
    gguf.write_model(
        path,
        tensors,
        config,
        tokenizer=chat.tokenizer,
        template=chat.template.source if has_template else None,
        end_of_turn=chat.end_of_turn if has_template else None,
        kind=dtype,
        name=name,
    )


def _loaded_as(config: Config) -> str | None:
    """GGUF rounds once, from fp32."""
    if config.to == "gguf":
        return None if config.dtype is None else "fp32"
    return None if config.dtype is None else _TORCH_NAMES[config.dtype]


def _saved_as(opened: checkpoint.Pretrained) -> str:
    dtype = opened.model.embedding.weight.dtype
    names = {runtime.pick_dtype(name): short for short, name in _TORCH_NAMES.items()}
    return names[dtype]


def _say(message: str) -> None:
    Console().print(escape(message), highlight=False, soft_wrap=True)
