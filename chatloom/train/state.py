"""A training state is a tree of dictionaries, lists, tensors and JSON values; on disk it is tensors beside JSON."""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from chatloom import checkpoint

_TENSOR = "$tensor"  # the JSON tree holds {"$tensor": name} where a tensor was


class Stateful(Protocol):
    """What can be saved beside the weights: a loader, a KL controller, another trainer."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, JSON values, and lists and string-keyed dictionaries of them."""

    def load_state_dict(self, state: Any) -> None:
        """Undo of `state_dict`."""


def save_tree(folder: Path, tree: dict[str, Any]) -> None:
    """Write a tree as one checkpoint folder, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    plain = _take_tensors(tree, "", tensors)
    checkpoint.save_state(folder, tensors, plain)


def load_tree(folder: Path) -> dict[str, Any]:
    """Read what `save_tree` wrote; tuples have become lists."""
    tensors, plain = checkpoint.load_state(folder)
    tree: dict[str, Any] = _put_tensors(plain, tensors)
    return tree


def _take_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value), f"{name}: JSON has string keys only"
        return {key: _take_tensors(item, f"{name}/{key}".lstrip("/"), tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_take_tensors(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
    return value


def _put_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {key: _put_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_tensors(item, tensors) for item in value]
    return value


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Trained parameters, tied ones once, and the buffers that belong to the model's state.

    What is frozen is the base's, which the run is opened with again.
    """
    kept = module.state_dict().keys()
    buffers = {name: buffer for name, buffer in module.named_buffers() if name in kept}
    trained = {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {**trained, **buffers}


@torch.no_grad()
def copy_tensors(saved: dict[str, Tensor], present: dict[str, Tensor], *, what: str) -> None:
    """Copy `saved` into `present` in place. Raises ValueError for another set of names, or another shape."""
    for name in sorted(saved.keys() ^ present.keys()):
        where = "the checkpoint" if name in saved else "the model"
        raise ValueError(f"{what}: only {where} has {name}; resume with the options that the run was started with")
    for name, tensor in present.items():
        if saved[name].shape != tensor.shape:
            raise ValueError(
                f"{what}: {name} is {tuple(saved[name].shape)} in the checkpoint and {tuple(tensor.shape)} now "
                "(another vocabulary or model size?); resume with the options that the run was started with"
            )
    for name, tensor in present.items():
        tensor.copy_(saved[name])
