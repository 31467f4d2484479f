"""An adapter's folder: `peft`'s two files, and `adapter_base.json`, which says whose adapter it is.

`adapter_config.json` names the base as its user did, for `peft`. `adapter_base.json` also has its path relative to the
folder, so that a folder of runs may move, and a digest of its weights, so that an adapter on another base is an error;
and a reward model's gain and bias, which `peft` has no place for. An adapter without that file (from `peft`) is held to
its shapes alone. `adapter_config.json` is written last, so a folder that has one is whole.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from chatloom import runtime
from chatloom.adapters.layout import Fused
from chatloom.adapters.peft import to_peft

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "adapter_base.json"


@dataclass(frozen=True)
class Base:
    """What an adapter was trained on: as given, relative to the adapter's folder, and its weights' digest."""

    given: str
    relative: str | None = None
    digest: str | None = None
    reward_gain: float = 1.0
    reward_bias: float = 0.0
    context_length: int | None = None  # that the base was opened for, if not its own, and how (`models.longer`)
    rope_scaling: Any = None

    def path_from(self, folder: Path) -> str:
        """Where it is for an adapter in `folder`: beside that as it was, where its user said, or a name."""
        for path in (self.relative and folder / self.relative, self.given):
            if path and Path(path).exists():
                return os.path.normpath(path)
        return self.given


@dataclass(frozen=True, eq=False)
class SavedAdapter:
    """An adapter's folder, read."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    base: Base


def is_adapter(folder: Path | str) -> bool:
    """Whether a folder holds an adapter and no model of its own."""
    return (Path(folder) / CONFIG).exists()


def write_adapter(
    folder: Path,
    decoder: Any,
    names: Mapping[str, Fused],
    *,
    base: str,
    digest: str,
    score: Tensor | None = None,
    gain: float = 1.0,
    bias: float = 0.0,
    context_length: int | None = None,
    rope_scaling: str | None = None,
) -> None:
    """Write an adapted model's adapter, and its score head (1, C) if it has one. Raises OSError (disk full, ...)."""
    config, tensors = to_peft(decoder, names, base=base, score=score)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    runtime.write_atomically(folder / WEIGHTS, save(whole, metadata={"format": "pt"}))
    relative = os.path.relpath(base, folder) if Path(base).exists() else None
    about = Base(base, relative, digest, gain, bias, context_length, rope_scaling)
    runtime.write_atomically(folder / BASE, json.dumps(asdict(about), indent=2) + "\n")
    runtime.write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def read_adapter(folder: Path) -> SavedAdapter:
    """Read an adapter's files. Raises ValueError for one that is missing, cut short or no JSON."""
    config, base = _read_config(folder)
    if not (folder / WEIGHTS).exists():
        raise ValueError(f"{folder} has no {WEIGHTS}; an adapter's folder holds {CONFIG} and {WEIGHTS}")
    try:
        tensors = load((folder / WEIGHTS).read_bytes())
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{folder / WEIGHTS} is not a whole safetensors file ({error}); copy it again") from error
    return SavedAdapter(config, tensors, base)


def read_base(folder: Path) -> Base:
    """What an adapter's folder says of its base, without its tensors. Raises ValueError if it says nothing."""
    return _read_config(folder)[1]


def _read_config(folder: Path) -> tuple[dict[str, Any], Base]:
    config = runtime.read_json(folder / CONFIG)
    if (folder / BASE).exists():
        try:
            return config, Base(**runtime.read_json(folder / BASE))
        except TypeError as error:
            raise ValueError(f"{folder / BASE} is not Chatloom's ({error}); delete it to go by shapes alone") from error
    given = config.get("base_model_name_or_path")
    if not isinstance(given, str) or not given:
        raise ValueError(f"{folder / CONFIG} does not say what the adapter's base is; set base_model_name_or_path")
    return config, Base(given)
