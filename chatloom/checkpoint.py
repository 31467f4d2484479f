"""One checkpoint format from raw text to the assistant: a Hugging Face folder, and resume state beside it.

A model folder holds `config.json`, `model.safetensors`, the tokenizer's files, `chat_template.jinja` and
`generation_config.json`; transformers and vLLM open it unchanged. A reward model is a sequence classifier with one
label, whose gain and bias stand in `config.json`. A training state is tensors in safetensors and the rest in JSON:
nothing here reads pickle. Every file is written under a temporary name, synced and renamed.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chatloom import adapters, models, runtime
from chatloom.adapters import files as adapter_files
from chatloom.adapters.peft import from_peft
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import ChatTemplate
from chatloom.models import Decoder, RewardModel
from chatloom.models.weights import from_huggingface, to_huggingface
from chatloom.tokenizers.bpe import Tokenizer

WEIGHTS, INDEX, CONFIG, TEMPLATE = (
    "model.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "chat_template.jinja",
)
SCORE_HEAD = "score.weight"
# Stands in for the template of a base model that has none: every use but reading and writing the folder is an error.
NO_TEMPLATE = (
    "{{ raise_exception('this model has no chat template, so it can continue text but not chat; "
    "fine-tune it first with `chatloom sft`') }}"
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
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error
    return tensors


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if (folder / WEIGHTS).exists():
        return read_tensors(folder / WEIGHTS)
    if (folder / INDEX).exists():
        shards = set(_read_json(folder / INDEX)["weight_map"].values())
        tensors: dict[str, Tensor] = {}
        for shard in sorted(shards):
            tensors.update(read_tensors(folder / Path(shard).name))
        return tensors
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for path in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"{folder} holds {pickles[0]}, a pickle, which can run code when it is read; only safetensors are read. "
            "Convert it with the publisher's tool or transformers' save_pretrained(safe_serialization=True)"
        )
    raise ValueError(f"{folder} has no {WEIGHTS}" + _hint(folder))


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
    if adapters.is_adapted(trunk):
        raise ValueError(
            "the model has an adapter; save that alone (checkpoint.save_adapter), or write LoRA into the weights first "
            "(adapters.merge and adapters.detach)"
        )
    tokenizer = chat.tokenizer
    if tokenizer.vocab_size > trunk.config.vocab_size:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {trunk.config.vocab_size}")
    config = trunk.config.to_huggingface()
    module = _module_of(config)
    tensors = to_huggingface(trunk.state_dict(), module.WEIGHT_NAMES, trunk.config.num_layers)
    special = _special_tokens(chat)
    config |= special
    config["dtype"] = str(trunk.embedding.weight.dtype).removeprefix("torch.")
    if isinstance(model, RewardModel):
        tensors.pop("lm_head.weight", None)
        tensors[SCORE_HEAD] = model.score_head.weight
        base = config["architectures"][0].removesuffix("ForCausalLM").removesuffix("LMHeadModel")
        config["architectures"] = [f"{base}ForSequenceClassification"]
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
    return models.family(name)


def _open(folder: Path | str) -> tuple[Path, dict[str, Any], Decoder, dict[str, Tensor]]:
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no model folder {folder}")
    if not (folder / CONFIG).exists():
        raise ValueError(f"{folder} has no {CONFIG}" + _hint(folder))
    config = _read_json(folder / CONFIG)
    module = _module_of(config)
    try:
        model = _without_initialisation(module, module.Config.from_huggingface(config))
    except KeyError as error:
        raise ValueError(f"{folder / CONFIG} has no {error}, which a {config['model_type']} needs") from error
    return folder, config, model, _read_weights(folder)


def _without_initialisation(module: Any, config: Any) -> Decoder:
    """A model whose weights are about to be read, built without drawing from torch's generator."""
    state = torch.get_rng_state()
    model: Decoder = module.Model(config)
    torch.set_rng_state(state)
    return model


def _finish(
    model: Decoder, tensors: dict[str, Tensor], folder: Path, config: dict[str, Any], *, ignored: tuple[str, ...] = ()
) -> ChatFormat:
    module = _module_of(config)
    expected = set(model.state_dict())
    tied = ("lm_head.weight",) if model.head is None else ()
    state = from_huggingface(
        tensors,
        module.WEIGHT_NAMES,
        model.config.num_layers,
        expected=expected - ({"head.weight"} if ignored else set()),
        ignored=(*module.IGNORED, *tied, *ignored),
    )
    for name, tensor in model.state_dict().items():
        if name in state and state[name].shape != tensor.shape:
            raise ValueError(
                f"{folder}: {name} is {tuple(state[name].shape)}, but {CONFIG} asks for {tuple(tensor.shape)}"
            )
    model.load_state_dict(state, strict=False)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {model.config.vocab_size}; "
            "they do not belong together"
        )
    return ChatFormat(tokenizer, ChatTemplate.load(folder) or ChatTemplate(NO_TEMPLATE))


def load_pretrained(
    folder: Path | str, *, device: torch.device | str | None = None, dtype: str | None = None, merge: bool = True
) -> Pretrained:
    """Open a language model's folder.

    Args:
        folder: a Chatloom run, any Hugging Face folder of a known family, or an adapter's folder (opens its base too).
        device: where to put it; None is the CPU.
        dtype: "fp32", "bf16" or "fp16"; None as saved.
        merge: write LoRA into the weights; otherwise it stays beside them, and the base is frozen.

    Raises:
        ValueError: no such folder, a file missing or corrupt, weights of another configuration, a reward model, an
            adapter whose base is not there or is another.
    """
    if adapter_files.is_adapter(folder):
        opened, score, _ = _open_adapter(Path(folder), device, dtype, merge=merge)
        if score is not None:
            raise ValueError(f"{folder} is a reward model; a language model is needed here")
        return opened
    folder, config, model, tensors = _open(folder)
    if SCORE_HEAD in tensors:
        raise ValueError(f"{folder} is a reward model; a language model is needed here")
    chat = _finish(model, tensors, folder, config)
    _place(model, tensors, device, dtype)
    return Pretrained(model, chat, config)


def load_reward(
    folder: Path | str,
    *,
    device: torch.device | str | None = None,
    dtype: str | None = None,
    trunk: Decoder | None = None,
) -> PretrainedReward:
    """Open a reward model's folder with its head, gain and bias.

    An adapter is merged into its base, or, where the base is given as `trunk`, put on that. Raises ValueError if the
    folder has no reward head.
    """
    if adapter_files.is_adapter(folder):
        opened, score, base = _open_adapter(Path(folder), device, dtype, merge=trunk is None, trunk=trunk)
        if score is None:
            raise ValueError(f"{folder} has no reward head; train one with `chatloom reward --model {folder}`")
        model = _reward_model(opened.model, score, gain=base.reward_gain, bias=base.reward_bias)
        return PretrainedReward(model, opened.chat, opened.config)
    folder, config, decoder, tensors = _open(folder)
    if SCORE_HEAD not in tensors or "reward_gain" not in config:
        raise ValueError(f"{folder} has no reward head; train one with `chatloom reward --model {folder}`")
    score = tensors.pop(SCORE_HEAD)
    chat = _finish(decoder, tensors, folder, config, ignored=("lm_head.weight",))
    model = _reward_model(decoder, score, gain=config["reward_gain"], bias=config["reward_bias"])
    _place(model, tensors, device, dtype)
    return PretrainedReward(model, chat, config)


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
    saved = adapter_files.read_adapter(folder)
    try:
        path = _located(saved.base_path())
    except ValueError as error:
        where = adapter_files.BASE if saved.base.digest else adapter_files.CONFIG
        raise ValueError(
            f"{folder} is an adapter, and its base model {saved.base_path()} is not there; put it there, or say in "
            f"{where} where it is ({error})"
        ) from error
    if path.resolve() == folder.resolve():
        raise ValueError(f"{folder} is an adapter that names itself as its base model")
    digest = weights_digest(path)
    if saved.base.digest not in (None, digest):
        raise ValueError(
            f"{folder} is an adapter of another base model: the weights of {path} are not those that it was trained "
            f"on (digest {digest}, not {saved.base.digest})"
        )
    model, chat = trunk, None
    if model is None:
        early = "fp32" if dtype == "fp32" else None  # the update is added before weights are rounded
        base = load_pretrained(path, device=device, dtype=early)
        model, chat = base.model, base.chat
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
    if chat is None or (folder / "tokenizer.json").exists():
        own = folder if (folder / "tokenizer.json").exists() else path
        chat = ChatFormat(Tokenizer.load(own), ChatTemplate.load(own) or ChatTemplate(NO_TEMPLATE))
    return Pretrained(model, chat, model.config.to_huggingface()), score, saved.base


def is_adapter_of(folder: Path | str, base: Path | str) -> bool:
    """Whether a folder is an adapter of the model at `base`, so that it can be put on that model's weights."""
    if not adapter_files.is_adapter(folder):
        return False
    saved = adapter_files.read_adapter(Path(folder))
    if saved.base.digest is None:
        return Path(saved.base_path()).resolve() == Path(base).resolve()
    return saved.base.digest == weights_digest(base)


def _located(ref: Path | str) -> Path:
    """The folder or file of a model. ValueError if there is none."""
    if not Path(ref).exists():
        raise ValueError(f"there is no model folder {ref}")
    return Path(ref)


def weights_digest(ref: Path | str) -> str:
    """Sixteen hex digits of a model's weights: a file's, or those of all safetensors files of a folder."""
    path = _located(ref)
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
