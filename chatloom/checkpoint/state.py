"""What a run goes on from: a folder `checkpoints/step_000100` of tensors and scalars, whole or not there at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from chatloom import runtime
from chatloom.checkpoint.tensors import read_tensors


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
    return read_tensors(folder / "state.safetensors"), runtime.read_json(folder / "state.json")


def latest_checkpoint(run_folder: Path | str) -> Path | None:
    """The newest `checkpoints/step_000100` of a run, or None. A folder of that name is always whole."""
    folders = (Path(run_folder) / "checkpoints").glob("step_*")
    return max(folders, key=lambda folder: int(folder.name.removeprefix("step_")), default=None)
