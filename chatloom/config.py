"""Configuration: frozen dataclasses, and nothing else.

Every stage, model and optimiser option is a field of a frozen dataclass. A dataclass may nest others; the command
line flattens them, so a field name is unique within a stage. A key that no field has is an error that names the
nearest field, because a setting that is silently ignored is the most expensive kind of bug.
"""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from chatloom import runtime

T = TypeVar("T")


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """A hint such as `; did you mean 'learning_rate'?`, or the list of known names when nothing is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def to_dict(config: Any) -> dict[str, Any]:
    """The JSON-ready dictionary of a (nested) dataclass; tuples become lists and paths strings."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def from_dict(cls: type[T], data: dict[str, Any]) -> T:
    """Build `cls` from what `to_dict` gave. Raises ValueError for a key that no field has."""
    hints = typing.get_type_hints(cls)
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in names:
            raise ValueError(f"{cls.__name__} has no option {key!r}{nearest(key, names)}")
    return cls(**{key: _typed(hints[key], value) for key, value in data.items()})


def _typed(hint: Any, value: Any) -> Any:
    """Turn JSON's lists, strings and objects back into the tuples, paths and dataclasses of the annotation."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        return value if value is None or len(options) != 1 else _typed(options[0], value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return from_dict(hint, value)
    if origin is tuple and isinstance(value, list):
        item = typing.get_args(hint)[0]
        return tuple(_typed(item, element) for element in value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    return value


def override(config: T, **changes: Any) -> T:
    """`config` with the named fields changed, wherever they are nested. Raises ValueError for an unknown name."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    own = {key: value for key, value in changes.items() if key in fields}
    rest = {key: value for key, value in changes.items() if key not in fields}
    for name, value in fields.items():
        if dataclasses.is_dataclass(value) and name not in own:
            below = {key: rest.pop(key) for key in list(rest) if key in all_names(value)}
            if below:
                own[name] = override(value, **below)
    for key in rest:
        raise ValueError(f"{type(config).__name__} has no option {key!r}{nearest(key, all_names(config))}")
    return dataclasses.replace(config, **own)  # type: ignore[type-var]


def all_names(config: Any) -> set[str]:
    """Names of all fields, nested ones included."""
    names: set[str] = set()
    for field in dataclasses.fields(config):
        names.add(field.name)
        value = getattr(config, field.name, None)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names |= all_names(value)
    return names


def save(config: Any, path: Path) -> None:
    """Write `config` as JSON, atomically."""
    runtime.write_atomically(path, json.dumps(to_dict(config), indent=2) + "\n")


def load(cls: type[T], path: Path) -> T:
    """Read what `save` wrote. Raises ValueError naming the file for broken JSON or an unknown key."""
    try:
        return from_dict(cls, json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def digest(config: Any) -> str:
    """Sixteen hex digits that change when any field changes."""
    text = json.dumps(config if isinstance(config, dict) else to_dict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
