"""One checkpoint format from raw text to the assistant: a Hugging Face folder, and resume state beside it.

A model folder holds `config.json`, `model.safetensors`, the tokenizer's files, `chat_template.jinja` and
`generation_config.json`; transformers and vLLM open it unchanged. A reward model is a sequence classifier with one
label, whose gain and bias stand in `config.json`. A training state is tensors in safetensors and the rest in JSON:
nothing here reads pickle. Every file is written under a temporary name, synced and renamed. A .gguf file is read as
the folder that it stands for; `catalogue` says what else may be named.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chatloom import adapters, catalogue, gguf, models, runtime
from chatloom.adapters import files as adapter_files
from chatloom.adapters.peft import from_peft
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import ChatTemplate
from chatloom.models import Decoder, RewardModel
from chatloom.models.weights import from_huggingface, head_names, to_huggingface
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


# --- tensors --------------------------------------------------------------------------------------------------


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically. Raises OSError (disk full, ...) and leaves the old file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises ValueError for a truncated or foreign file."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; copy or download the model again") from error
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error
    return tensors


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
    where = _read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(each, str) for each in where.values()):
        raise ValueError(f"{index} has no weight_map of tensors to files; copy or download it again")
    return sorted({Path(each).name for each in where.values()})


def _hint(folder: Path) -> str:
    if latest_checkpoint(folder) is not None:
        return "; it is a run that has not finished: give its command again, and it goes on where it stopped"
    return "; a model folder holds config.json, model.safetensors and tokenizer.json"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(data).__name__}")
    return data


# --- model folders --------------------------------------------------------------------------------------------


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
        for name in head_names(_module_of(config).WEIGHT_NAMES):
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
    return config, to_huggingface(model.state_dict(), _module_of(config).WEIGHT_NAMES, model.config)


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


def _module_of(config: dict[str, Any]) -> Any:
    name = config.get("model_type")
    if not isinstance(name, str):
        raise ValueError(f"config.json has no model_type; known families: {', '.join(models.FAMILIES)}")
    if name not in models.FAMILIES and "auto_map" in config:
        raise ValueError(
            f"model family {name!r} brings code of its own (auto_map), which is never run; use a family that is built "
            f"in, known: {', '.join(models.FAMILIES)}"
        )
    return models.family(name)


@dataclass(frozen=True)
class _Source:
    """A model folder or a GGUF file, read but not yet a model."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    chat: ChatFormat


def _read(ref: Path | str, dtype: str | None) -> _Source:
    path = catalogue.resolve(ref)
    if path.is_file():
        found = gguf.read_model(path)
        _check_size(found.config, [math.prod(shape) for shape in found.shapes.values()], path)
        tensors = found.tensors(runtime.pick_dtype(dtype) if dtype else None)
        return _Source(path, found.config, tensors, ChatFormat(found.tokenizer, found.template or NO_TEMPLATE))
    if not (path / CONFIG).exists():
        raise ValueError(f"{path} has no {CONFIG}" + _hint(path))
    config = _read_json(path / CONFIG)
    _module_of(config)  # an unknown family is the first thing to say
    tensors = _read_weights(path)
    _check_size(config, [tensor.numel() for tensor in tensors.values()], path / CONFIG)
    return _Source(path, config, tensors, load_chat(path))


def load_chat(ref: Path | str) -> ChatFormat:
    """A model's tokenizer and chat template, without its weights; an adapter without any has its base's."""
    path = catalogue.resolve(ref)
    if path.is_file():
        found = gguf.read_model(path)
        return ChatFormat(found.tokenizer, found.template or NO_TEMPLATE)
    if adapter_files.is_adapter(path) and not (path / "tokenizer.json").exists():
        return load_chat(base_of(path))
    return ChatFormat(Tokenizer.load(path), ChatTemplate.load(path) or ChatTemplate(NO_TEMPLATE))


def _family_config(config: dict[str, Any], path: Path) -> Any:
    module = _module_of(config)
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
    known = _family_config(config, path)
    for name in ("vocab_size", "context_length", "num_layers", "width", "num_heads", "head_width"):
        value = getattr(known, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{path}: {name} is {value!r}; it must be a whole number of at least 1")
    num_experts = getattr(known, "num_experts", 1)
    if not isinstance(num_experts, int) or not 1 <= known.num_layers * num_experts <= len(sizes):
        each = f" of {num_experts:,} experts" if hasattr(known, "num_experts") else ""
        raise ValueError(f"{path} asks for {known.num_layers:,} layers{each}, and there are {len(sizes)} tensors")
    if known.context_length > _LONGEST_CONTEXT:
        raise ValueError(f"{path} asks for a context of {known.context_length:,}; at most {_LONGEST_CONTEXT:,}")
    try:
        with torch.device("meta"), _Unfilled():
            wanted = models.num_parameters(_module_of(config).Model(known))
    except (RuntimeError, TypeError, ArithmeticError, AssertionError) as error:
        raise ValueError(f"{path} describes no model that can be built: {error}") from error
    if wanted > 2 * sum(sizes) + 10_000_000:
        raise ValueError(
            f"{path} asks for {wanted:,} weights, and there are {sum(sizes):,}; they do not belong together"
        )


class _Unfilled(TorchFunctionMode):
    """Leaves out the drawing of fresh weights: they are about to be read, and torch's generator stays as it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init" or getattr(func, "__name__", "") in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


_DRAWS = ("normal_", "uniform_")


def _open(ref: Path | str, dtype: str | None) -> tuple[_Source, Decoder]:
    source = _read(ref, dtype)
    with _Unfilled():
        model: Decoder = _module_of(source.config).Model(_family_config(source.config, source.path))
    return source, model


def _finish(model: Decoder, source: _Source, *, headless: bool = False) -> None:
    """Fill the model; `headless` is a reward model's trunk, which has no vocabulary projection stored."""
    path, module = source.path, _module_of(source.config)
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
    ref: Path | str, *, device: torch.device | str | None = None, dtype: str | None = None, merge: bool = True
) -> Pretrained:
    """Open a language model.

    Args:
        ref: a Chatloom run, a Hugging Face folder or a .gguf file of a known family, an adapter's folder (opens its
            base too), a name of the catalogue, a hub id.
        device: where to put it; None is the CPU.
        dtype: "fp32", "bf16" or "fp16"; None as saved, which for a quantised file is fp32.
        merge: write LoRA into the weights; otherwise it stays beside them, and the base is frozen.

    Raises:
        ValueError: no such model, a file missing or corrupt, weights of another configuration, a reward model, an
            adapter whose base is not there or is another.
    """
    path = catalogue.resolve(ref)
    if adapter_files.is_adapter(path):
        opened, score, _ = _open_adapter(path, device, dtype, merge=merge)
        if score is not None:
            raise ValueError(f"{path} is a reward model; a language model is needed here")
        return opened
    source, model = _open(path, dtype)
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


# --- adapters -------------------------------------------------------------------------------------------------


def save_adapter(folder: Path | str, model: Decoder | RewardModel, chat: ChatFormat, *, base: str) -> None:
    """Write the adapter of an adapted model, its score head if it is a reward model, and its tokenizer and template.

    `base` is the folder or file that the model was opened from; its digest is written down, and opening the adapter
    opens it again.
    """
    folder = Path(folder)
    trunk = model.trunk if isinstance(model, RewardModel) else model
    chat.tokenizer.save(folder, model_max_length=trunk.config.context_length)
    if chat.template.source != NO_TEMPLATE:
        chat.template.save(folder)
    head: dict[str, Any] = {}
    if isinstance(model, RewardModel):
        head = {"score": model.score_head.weight, "gain": model.gain, "bias": model.bias}
    digest = weights_digest(base)
    adapter_files.write_adapter(folder, trunk, models.stored_names(trunk), base=base, digest=digest, **head)


def _open_adapter(
    folder: Path,
    device: torch.device | str | None,
    dtype: str | None,
    *,
    merge: bool,
    trunk: Decoder | None = None,
) -> tuple[Pretrained, Tensor | None, adapter_files.Base]:
    """The adapted model, the weight of its score head, and what is known of its base."""
    path = base_of(folder)
    saved = adapter_files.read_adapter(folder)
    digest = weights_digest(path)
    if saved.base.digest not in (None, digest):
        raise ValueError(
            f"{folder} is an adapter of another base model: the weights of {path} are not those that it was trained "
            f"on (digest {digest}, not {saved.base.digest})"
        )
    model = trunk
    if model is None:
        early = "fp32" if dtype == "fp32" else None  # the update is added before weights are rounded
        model = load_pretrained(path, device=device, dtype=early).model
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


def adapter_folder(ref: Path | str) -> Path | None:
    """The folder of the adapter that a reference stands for, None if it stands for a whole model."""
    path = catalogue.resolve(ref)
    return path if adapter_files.is_adapter(path) else None


def base_of(folder: Path | str) -> Path:
    """The folder or file of an adapter's base model, which may be an adapter itself.

    Raises ValueError if it is not there, or if going from base to base comes back to where it was.
    """
    folder = Path(folder)
    base = _next_base(folder)
    seen, at = [folder], base
    while adapter_files.is_adapter(at):
        if any(at.resolve() == one.resolve() for one in seen):
            raise ValueError(_circle([*seen, at]))
        seen.append(at)
        at = _next_base(at)
    return base


def _next_base(folder: Path) -> Path:
    base = adapter_files.read_base(folder)
    named = base.path_from(folder)
    try:
        return catalogue.resolve(named)
    except ValueError as error:
        where = adapter_files.BASE if base.digest else adapter_files.CONFIG
        raise ValueError(
            f"{folder} is an adapter, and its base model {named} is not there; put it there, or say in {where} where "
            f"it is ({error})"
        ) from error


def _circle(chain: list[Path]) -> str:
    first = next(number for number, one in enumerate(chain) if one.resolve() == chain[-1].resolve())
    where = f"; say in {adapter_files.BASE} or {adapter_files.CONFIG} of one of them which model it was trained on"
    if len(chain) - first == 2:
        return f"{chain[first]} is an adapter that names itself as its base model{where}"
    return "these adapters name one another as their base model: " + " -> ".join(map(str, chain[first:])) + where


def is_adapter_of(ref: Path | str, base: Path | str) -> bool:
    """Whether a folder is an adapter of the model at `base`, so that it can be put on that model's weights."""
    folder = adapter_folder(ref)
    if folder is None:
        return False
    known = adapter_files.read_base(folder).digest
    if known is None:
        return base_of(folder).resolve() == catalogue.resolve(base).resolve()
    return known == weights_digest(base)


def weights_digest(ref: Path | str) -> str:
    """Sixteen hex digits of a model's weights: a file's, or those of all safetensors files of a folder."""
    path = catalogue.resolve(ref)
    if path.is_file():
        return file_digest(path)
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return file_digest(files[0])
    return hashlib.sha256("".join(file_digest(file) for file in files).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """The first sixteen hex digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


# --- training state -------------------------------------------------------------------------------------------


def save_state(folder: Path | str, tensors: Mapping[str, Tensor], scalars: dict[str, Any]) -> None:
    """Write a training state as one folder, whole or not at all. Raises OSError when the disk is full."""
    with runtime.atomic_folder(Path(folder)) as temporary:
        try:
            whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
            save_file(whole, temporary / "state.safetensors")
        except SafetensorError as error:
            raise OSError(f"{folder} could not be written: {error}") from error
        (temporary / "state.json").write_text(json.dumps(scalars), encoding="utf-8")


def load_state(folder: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote."""
    folder = Path(folder)
    return read_tensors(folder / "state.safetensors"), _read_json(folder / "state.json")


def latest_checkpoint(run_folder: Path | str) -> Path | None:
    """The newest `checkpoints/step_000100` of a run, or None. A folder of that name is always whole."""
    folders = (Path(run_folder) / "checkpoints").glob("step_*")
    return max(folders, key=lambda folder: int(folder.name.removeprefix("step_")), default=None)
