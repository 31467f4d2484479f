"""A run's folder: whose it is, where it came from, and whether it is done.

`manifest.json` is written when a stage starts and again when it ends. It holds the stage's configuration, the digests
of what went in (data, tokenizer, models) and the lineage of the models it grew from, so that a policy can be traced
back to the text that its base read. The same command given again goes on where it stopped; another command in the
same folder is refused before anything is touched, unless nothing but the manifest is there yet: what was refused for
its data can be mended and given again. (The folder's `config.json` is the model's, as Hugging Face has it.)
"""

import hashlib
import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape

import chatloom
from chatloom import adapters, catalogue, checkpoint, runtime
from chatloom import config as configuration
from chatloom.adapters import AdapterConfig
from chatloom.adapters import files as adapter_files
from chatloom.chat.render import ChatFormat
from chatloom.checkpoint import file_digest
from chatloom.models import Decoder, RewardModel
from chatloom.models.longer import ContextConfig

MANIFEST = "manifest.json"
# Inputs that are models, so that names of the catalogue and hub ids may stand for them.
MODELS = ("model", "base", "reward", "ppo", "ppo_ptx")
# Where a run lies, and how it is shown, does not make it another run.
_FREE_FIELDS = ("output_dir", "log_every_steps", "tensorboard", "keep_checkpoints", "save_every_steps")
# What stands for a folder in the lineage: a model's weights, or a tokenizer where there is no model.
_PRODUCTS = (checkpoint.WEIGHTS, adapter_files.WEIGHTS, "tokenizer.json")
# What a kill in the middle of a write leaves in a run folder: `.NAME.RANDOM`.
_WRITTEN = (
    *(MANIFEST, checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.TEMPLATE, "generation_config.json"),
    *(adapter_files.CONFIG, adapter_files.WEIGHTS, adapter_files.BASE),
    *("tokenizer.json", "tokenizer_config.json", "metrics.jsonl", "report.json", "report.html", "tokens"),
)


@dataclass
class Run:
    """An opened run folder."""

    folder: Path
    stage: str
    manifest: dict[str, Any]
    started: float = field(default_factory=time.monotonic)
    lock: FileLock | None = None

    @property
    def complete(self) -> bool:
        """Whether the stage has ended here before."""
        return bool(self.manifest["status"] == "complete")

    @property
    def results(self) -> dict[str, Any]:
        """What `finish` was given."""
        return dict(self.manifest.get("results", {}))

    def save_model(
        self,
        model: Decoder | RewardModel,
        chat: ChatFormat,
        *,
        base: str | None = None,
        adaptation: AdapterConfig | None = None,
        context: ContextConfig | None = None,
    ) -> None:
        """Write the final model at the run's root; of an adapted model the adapter alone, unless it is to be merged.

        `base` is what the model was opened from, for `context`.
        """
        trunk = model.trunk if isinstance(model, RewardModel) else model
        if adaptation is not None and adaptation.adapter_merge:
            adapters.merge(trunk)
            adapters.detach(trunk)
        if runtime.is_main():
            if adapters.is_adapted(trunk):
                assert base is not None
                checkpoint.save_adapter(self.folder, model, chat, base=base, context=context)
            else:
                checkpoint.save_pretrained(self.folder, model, chat)
        runtime.barrier()

    def say(self, message: str) -> None:
        """Tell the user something, on the main rank."""
        if runtime.is_main():
            Console().print(f"[dim]{self.stage:>10}[/]  {escape(message)}", highlight=False, soft_wrap=True)

    def finish(self, **results: Any) -> dict[str, Any]:
        """Write down that the stage has ended, with what it found; returns `results`."""
        made = [self.folder / name for name in _PRODUCTS if (self.folder / name).exists()]
        self.manifest |= {
            "status": "complete",
            "results": results,
            "weights": file_digest(made[0]) if made else None,
            "seconds": self.seconds,
            "peak_memory_bytes": runtime.peak_memory_bytes(),
        }
        self._write()
        if self.lock is not None:
            self.lock.release()
        return results

    @property
    def seconds(self) -> float:
        """What the stage has taken so far, in all its parts if it was interrupted."""
        return float(self.manifest.get("seconds", 0.0)) + time.monotonic() - self.started

    def note_seconds(self) -> None:
        """Write down the time so far, so that what comes after an interruption adds to it."""
        self.manifest["seconds"], self.started = self.seconds, time.monotonic()
        self._write()

    def _write(self) -> None:
        if runtime.is_main():
            runtime.write_atomically(self.folder / MANIFEST, json.dumps(self.manifest, indent=2) + "\n")
        runtime.barrier()


def open_run(stage: str, config: Any, *, inputs: dict[str, str | Path | None]) -> Run:
    """Open or make the folder `config.output_dir` for a stage.

    Args:
        stage: the stage's name.
        config: its frozen config, with an `output_dir`.
        inputs: what the stage reads, by role (`data`, `model`, `tokenizer`, ...): files, folders, or for the roles in
            `MODELS` whatever `chatloom.load` opens; None is left out.

    Raises:
        ValueError: an input does not exist; the folder holds something else, another stage's run, or this stage's run
            with another configuration or other inputs.
    """
    folder = Path(config.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output-dir {folder} is a file; name a new folder")
    places = {role: _place(role, path) for role, path in inputs.items() if path is not None}
    digests = {role: _input_digest(path) for role, path in places.items()}
    fresh: dict[str, Any] = {
        "chatloom": chatloom.__version__,
        "stage": stage,
        "status": "running",
        "config": configuration.to_dict(config),
        "inputs": {role: {"path": str(inputs[role]), "digest": digest} for role, digest in digests.items()},
        "lineage": _lineage(list(places.values())),
    }
    found = read_manifest(folder)
    content = [] if not folder.is_dir() else [path.name for path in folder.iterdir() if path.name[0] != "."]
    if found is None and content:
        raise ValueError(f"--output-dir {folder} is not empty and holds no run; name a new folder")
    goes_on = found is not None and content != [MANIFEST]
    if found is not None and goes_on:
        _check_same(folder, found, fresh)
    runtime.barrier()  # every rank has looked before the first one writes
    run = Run(folder, stage, found if found is not None and goes_on else fresh, lock=_lock(folder))
    if runtime.is_main():
        _sweep(folder)
    if not goes_on:
        run._write()
    if run.complete and run.lock is not None:
        run.lock.release()
    return run


def _lock(folder: Path) -> FileLock | None:
    """Hold the folder for this process; the system lets go of it when the process ends, however it ends."""
    if not runtime.is_main():
        return None
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", is_singleton=True)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ValueError(f"another process is at work in {folder}; wait for it, or name another folder") from error
    return lock


def _place(role: str, given: str | Path) -> Path:
    """Where an input lies. ValueError, naming its option, if nowhere."""
    option = f"--{role.replace('_', '-')}"
    if role not in MODELS:
        if not Path(given).exists():
            raise ValueError(f"{option}: there is no file or folder {str(given)!r}")
        return Path(given)
    try:
        return catalogue.resolve(given)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error


def _sweep(folder: Path) -> None:
    """Remove what an earlier kill left half-written; nothing reads it."""
    for name in _WRITTEN:
        for path in folder.glob(f".{name}.*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _check_same(folder: Path, found: dict[str, Any], fresh: dict[str, Any]) -> None:
    if found["stage"] != fresh["stage"]:
        raise ValueError(f"{folder} holds a run of `{found['stage']}`, not of `{fresh['stage']}`; name another folder")
    old, new = _flatten(found["config"]), _flatten(json.loads(json.dumps(fresh["config"])))
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    changed = [name for name in changed if name.rsplit(".", 1)[-1] not in (*_FREE_FIELDS, *fresh["inputs"])]
    if changed:
        name = changed[0]
        raise ValueError(
            f"{folder} belongs to a run with another configuration: {name} was {old.get(name)!r}, is now "
            f"{new.get(name)!r}{f' (and {len(changed) - 1} more)' if len(changed) > 1 else ''}; "
            "give the old options to go on with it, name another --output-dir, or delete the folder"
        )
    for role, given in fresh["inputs"].items():
        if role not in found["inputs"]:
            raise ValueError(
                f"{folder} belongs to a run with another configuration: it had no {role}, now {given['path']!r}; "
                "give the old options to go on with it, name another --output-dir, or delete the folder"
            )
        if given["digest"] != found["inputs"][role]["digest"]:
            raise ValueError(
                f"{folder} was begun with another {role}: {given['path']} has changed since; "
                "name another --output-dir, or delete the folder to start again"
            )


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def read_manifest(folder: Path | str) -> dict[str, Any] | None:
    """The manifest of a run folder, or None when there is none. Raises ValueError when it is not readable JSON."""
    path = Path(folder) / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["stage"], manifest["status"], manifest["config"], manifest["inputs"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a Chatloom manifest ({error}); delete the folder to start again") from error
    return dict(manifest)


def _lineage(inputs: list[Path]) -> list[dict[str, Any]]:
    """What the inputs grew from, oldest first, each run once."""
    ancestors: list[dict[str, Any]] = []
    for path in inputs:
        for folder in (path, path.parent):
            manifest = read_manifest(folder) if folder.is_dir() else None
            if manifest is None:
                continue
            own = {"stage": manifest["stage"], "folder": str(folder), "weights": manifest.get("weights")}
            own["inputs"] = {role: entry["digest"] for role, entry in manifest["inputs"].items()}
            for entry in [*manifest.get("lineage", []), own]:
                if entry not in ancestors:
                    ancestors.append(entry)
            break
    return ancestors


def _input_digest(path: Path) -> str:
    """Digest of what matters of an input: a model's weights, a file's bytes, or all files of a folder."""
    if path.is_file():
        return file_digest(path)
    for name in _PRODUCTS:
        if (path / name).exists():
            return file_digest(path / name)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    text = "".join(f"{file.relative_to(path)} {file_digest(file)}\n" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
