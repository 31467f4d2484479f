"""Open a model: a language model or a reward model, whole or as an adapter on its base.

Weights are checked by name and shape against what the configuration asks for; one that is missing or left over is an
error that names it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chatloom import adapters, catalogue, models, runtime
from chatloom.adapters import files as adapter_files
from chatloom.adapters.peft import from_peft
from chatloom.chat.render import ChatFormat
from chatloom.checkpoint.bases import adapter_on, base_of
from chatloom.checkpoint.source import (
    SCORE_HEAD,
    Source,
    Unfilled,
    check_length,
    family_config,
    family_of,
    load_chat,
    read_source,
)
from chatloom.models import Decoder, RewardModel
from chatloom.models.longer import ContextConfig, longer
from chatloom.models.weights import from_huggingface, head_names
from chatloom.tokenizers.bpe import Tokenizer

OWN = ContextConfig()


@dataclass(frozen=True)
class Pretrained:
    """A model folder, opened. `config` is the raw `config.json`."""

    model: Decoder
    chat: ChatFormat
    config: dict[str, Any]

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""
        return self.chat.tokenizer


@dataclass(frozen=True)
class PretrainedReward:
    """A reward model's folder, opened."""

    model: RewardModel
    chat: ChatFormat
    config: dict[str, Any]


def _open(ref: Path | str, dtype: str | None, context: ContextConfig = OWN) -> tuple[Source, Decoder]:
    source = read_source(ref, dtype)
    config = family_config(source.config, source.path)
    if context:
        check_length(context.context_length, "context_length is")
        try:
            config = longer(config, context)
        except ValueError as error:
            raise ValueError(f"{source.path}: {error}") from error
    with Unfilled():
        model: Decoder = family_of(source.config).Model(config)
    return source, model


def _finish(model: Decoder, source: Source, *, headless: bool = False) -> None:
    """Fill the model; `headless` is a reward model's trunk, which has no vocabulary projection stored."""
    path, module = source.path, family_of(source.config)
    expected = {
        name: tensor for name, tensor in model.state_dict().items() if not (headless and name.startswith("head."))
    }
    unused = head_names(module.WEIGHT_NAMES) if headless or model.head is None else ()
    try:
        state = from_huggingface(
            source.tensors, module.WEIGHT_NAMES, model.config, expected=expected, ignored=(*module.IGNORED, *unused)
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    # What was dequantised is ours already; a mapped file is not, so its tensors are copied.
    model.load_state_dict(state, strict=False, assign=path.is_file())
    if headless and model.head is not None:
        for parameter in model.head.parameters():
            nn.init.zeros_(parameter)
    tokenizer = source.chat.tokenizer
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {model.config.vocab_size}; "
            "they do not belong together"
        )


def load_pretrained(
    ref: Path | str,
    *,
    device: torch.device | str | None = None,
    dtype: str | None = None,
    merge: bool = True,
    context: ContextConfig = OWN,
) -> Pretrained:
    """Open a language model.

    Args:
        ref: a Chatloom run, a Hugging Face folder or a .gguf file of a known family, an adapter's folder (opens its
            base too), a name of the catalogue, a hub id.
        device: where to put it; None is the CPU.
        dtype: "fp32", "bf16" or "fp16"; None as saved, which for a quantised file is fp32.
        merge: write LoRA into the weights; otherwise it stays beside them, and the base is frozen.
        context: for how long a text, if not the model's own.

    Raises:
        ValueError: no such model, a file missing or corrupt, weights of another configuration, a reward model, an
            adapter whose base is not there or is another, a context that the model cannot have.
    """
    path = catalogue.resolve(ref)
    if adapter_files.is_adapter(path):
        opened, score, _ = _open_adapter(path, device, dtype, merge=merge, context=context)
        if score is not None:
            raise ValueError(f"{path} is a reward model; a language model is needed here")
        return opened
    source, model = _open(path, dtype, context)
    if SCORE_HEAD in source.tensors:
        raise ValueError(f"{path} is a reward model; a language model is needed here")
    _finish(model, source)
    _place(model, source.tensors, device, dtype)
    return Pretrained(model, source.chat, source.config)


def load_reward(
    ref: Path | str,
    *,
    device: torch.device | str | None = None,
    dtype: str | None = None,
    trunk: Decoder | None = None,
) -> PretrainedReward:
    """Open a reward model's folder with its head, gain and bias.

    An adapter is merged into its base, or, where the base is given as `trunk`, put on that. Raises ValueError if the
    folder has no reward head.
    """
    path = catalogue.resolve(ref)
    if adapter_files.is_adapter(path):
        opened, score, base = _open_adapter(path, device, dtype, merge=trunk is None, trunk=trunk)
        if score is None:
            raise ValueError(f"{path} has no reward head; train one with `chatloom reward --model {path}`")
        model = _reward_model(opened.model, score, gain=base.reward_gain, bias=base.reward_bias)
        return PretrainedReward(model, opened.chat, opened.config)
    source, decoder = _open(path, dtype)
    tensors, config = source.tensors, source.config
    if SCORE_HEAD not in tensors or "reward_gain" not in config:
        raise ValueError(f"{path} has no reward head; train one with `chatloom reward --model {path}`")
    score = tensors.pop(SCORE_HEAD)
    _finish(decoder, source, headless=True)
    model = _reward_model(decoder, score, gain=config["reward_gain"], bias=config["reward_bias"])
    _place(model, tensors, device, dtype)
    return PretrainedReward(model, source.chat, config)


def _reward_model(trunk: Decoder, score: Tensor, *, gain: float, bias: float) -> RewardModel:
    state = torch.get_rng_state()
    model = RewardModel(trunk)
    torch.set_rng_state(state)
    weight = model.score_head.weight
    if score.shape != weight.shape:
        raise ValueError(f"the score head is {tuple(score.shape)}; this model needs {tuple(weight.shape)}")
    with torch.no_grad():
        weight.copy_(score)
    model.score_head.to(device=trunk.embedding.weight.device, dtype=trunk.embedding.weight.dtype)
    model.gain, model.bias = float(gain), float(bias)
    model.eval()
    return model


def _place(model: nn.Module, tensors: dict[str, Tensor], device: torch.device | str | None, dtype: str | None) -> None:
    saved = next(iter(tensors.values())).dtype
    model.to(device=device, dtype=runtime.pick_dtype(dtype) if dtype else saved)
    if isinstance(model, RewardModel):
        model.trunk.eval()
    model.eval()


def context_of(folder: Path, asked: ContextConfig = OWN) -> ContextConfig:
    """The context that an adapter's base is opened for: the one it was trained at, or the one that is asked for."""
    base = adapter_files.read_base(folder)
    trained = ContextConfig(base.context_length, base.rope_scaling)
    if trained and asked and asked != trained:
        raise ValueError(
            f"{folder} was trained at a context of {trained.context_length} (rope_scaling {trained.rope_scaling}); "
            "leave context_length and rope_scaling out"
        )
    return trained or asked


def _open_adapter(
    folder: Path,
    device: torch.device | str | None,
    dtype: str | None,
    *,
    merge: bool,
    trunk: Decoder | None = None,
    context: ContextConfig = OWN,
) -> tuple[Pretrained, Tensor | None, adapter_files.Base]:
    """The adapted model, the weight of its score head, and what is known of its base."""
    path = base_of(folder)
    saved = adapter_on(folder, path)
    model = trunk
    if model is None:
        early = "fp32" if dtype == "fp32" else None  # the update is added before weights are rounded
        model = load_pretrained(path, device=device, dtype=early, context=context_of(folder, context)).model
    try:
        score = from_peft(model, models.stored_names(model), saved.config, saved.tensors)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: {error}") from error
    if merge and model.prefix is None:
        adapters.merge(model)
        adapters.detach(model)
    if trunk is None:
        model.to(runtime.pick_dtype(dtype) if dtype else model.embedding.weight.dtype)
    model.eval()
    return Pretrained(model, load_chat(folder), model.config.to_huggingface()), score, saved.base
