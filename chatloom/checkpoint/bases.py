"""What an adapter was trained on: its base is opened again by path or name, and held to the digest of its weights."""

import hashlib
from pathlib import Path

from chatloom import catalogue
from chatloom.adapters import files as adapter_files
from chatloom.checkpoint.tensors import file_digest


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


def adapter_on(ref: Path | str, base: Path | str | None) -> adapter_files.SavedAdapter:
    """An adapter's files, to be put on the model at `base`; None leaves it to the shapes whether it fits.

    Raises ValueError if there is no adapter, or if it was trained on other weights.
    """
    folder = adapter_folder(ref)
    if folder is None:
        raise ValueError(f"{ref} is no adapter's folder; that holds {adapter_files.CONFIG} and {adapter_files.WEIGHTS}")
    saved = adapter_files.read_adapter(folder)
    if base is not None and saved.base.digest is not None:
        digest = weights_digest(base)
        if saved.base.digest != digest:
            raise ValueError(
                f"{folder} is an adapter of another base model: the weights of {base} are not those that it was "
                f"trained on (digest {digest}, not {saved.base.digest})"
            )
    return saved


def weights_digest(ref: Path | str) -> str:
    """Sixteen hex digits of a model's weights: a file's, or those of all safetensors files of a folder."""
    path = catalogue.resolve(ref)
    if path.is_file():
        return file_digest(path)
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return file_digest(files[0])
    return hashlib.sha256("".join(file_digest(file) for file in files).encode()).hexdigest()[:16]
