"""Write a model's folder in Hugging Face layout, or its adapter's in that of `peft`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from chatloom import adapters, models, runtime
from chatloom.adapters import files as adapter_files
from chatloom.chat.render import ChatFormat
from chatloom.checkpoint.bases import weights_digest
from chatloom.checkpoint.source import CONFIG, NO_TEMPLATE, SCORE_HEAD, WEIGHTS, family_of
from chatloom.checkpoint.tensors import write_tensors
from chatloom.models import Decoder, RewardModel
from chatloom.models.longer import ContextConfig
from chatloom.models.weights import head_names, to_huggingface


def save_pretrained(
    folder: Path | str, model: Decoder | RewardModel, chat: ChatFormat, *, extra: dict[str, Any] | None = None
) -> None:
    """Write a model folder in Hugging Face layout.

    Args:
        folder: where; made if needed. `config.json` is written last, so a folder that has one is whole.
        model: a language model or a reward model.
        chat: its tokenizer and chat template.
        extra: further keys for `config.json`.
    """
    folder = Path(folder)
    trunk = model.trunk if isinstance(model, RewardModel) else model
    tokenizer = chat.tokenizer
    if tokenizer.vocab_size > trunk.config.vocab_size:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {trunk.config.vocab_size}")
    config, tensors = stored(trunk)
    special = _special_tokens(chat)
    config |= special
    config["dtype"] = str(trunk.embedding.weight.dtype).removeprefix("torch.")
    if isinstance(model, RewardModel):
        for name in head_names(family_of(config).WEIGHT_NAMES):
            tensors.pop(name, None)
        tensors[SCORE_HEAD] = model.score_head.weight
        base = config["architectures"][0].removesuffix("ForCausalLM").removesuffix("LMHeadModel")
        config["architectures"] = [getattr(trunk.config, "CLASSIFIER", f"{base}ForSequenceClassification")]
        config |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
        config |= {"reward_gain": model.gain, "reward_bias": model.bias}
    else:
        generation = special | {"do_sample": True}
        if chat.template.source != NO_TEMPLATE:
            generation["eos_token_id"] = list(chat.stop_tokens)
        runtime.write_atomically(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    tokenizer.save(folder, model_max_length=trunk.config.context_length)
    if chat.template.source != NO_TEMPLATE:
        chat.template.save(folder)
    write_tensors(folder / WEIGHTS, tensors, metadata={"format": "pt"})
    runtime.write_atomically(folder / CONFIG, json.dumps(config | (extra or {}), indent=2) + "\n")


def stored(model: Decoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A model's `config.json` and tensors as Hugging Face has them, without special tokens and dtype.

    Raises ValueError for one with an adapter, which these have no place for.
    """
    if adapters.is_adapted(model):
        raise ValueError(
            "the model has an adapter; save that alone (checkpoint.save_adapter), or write LoRA into the weights first "
            "(adapters.merge and adapters.detach)"
        )
    config = model.config.to_huggingface()
    return config, to_huggingface(model.state_dict(), family_of(config).WEIGHT_NAMES, model.config)


def _special_tokens(chat: ChatFormat) -> dict[str, Any]:
    """Token numbers for `config.json`, those that the tokenizer has; what ends a turn ends generation."""
    tokenizer = chat.tokenizer
    special: dict[str, Any] = {}
    if tokenizer.bos_token is not None:
        special["bos_token_id"] = tokenizer.bos
    if tokenizer.pad_token is not None:
        special["pad_token_id"] = tokenizer.pad
    if chat.template.source != NO_TEMPLATE:
        special["eos_token_id"] = chat.end_of_turn
    elif tokenizer.eos_token is not None:
        special["eos_token_id"] = tokenizer.eos
    return special


def save_adapter(
    folder: Path | str,
    model: Decoder | RewardModel,
    chat: ChatFormat,
    *,
    base: str,
    context: ContextConfig | None = None,
) -> None:
    """Write the adapter of an adapted model, its score head if it is a reward model, and its tokenizer and template.

    `base` is the folder or file that the model was opened from; its digest is written down, and opening the adapter
    opens it again, for `context` if that is not its own.
    """
    folder = Path(folder)
    trunk = model.trunk if isinstance(model, RewardModel) else model
    chat.tokenizer.save(folder, model_max_length=trunk.config.context_length)
    if chat.template.source != NO_TEMPLATE:
        chat.template.save(folder)
    more: dict[str, Any] = {} if context is None else asdict(context)
    if isinstance(model, RewardModel):
        more |= {"score": model.score_head.weight, "gain": model.gain, "bias": model.bias}
    digest = weights_digest(base)
    adapter_files.write_adapter(folder, trunk, models.stored_names(trunk), base=base, digest=digest, **more)
