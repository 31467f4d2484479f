"""What the runs' manifests say about where a model came from and what it cost, as the report shows it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatloom.evals.results import LineageStep, ResourceUse
from chatloom.stages.run import read_manifest

_KINDS = {"tokenizer": "tokenizer", "pretrain": "base", "sft": "sft", "reward": "reward", "ppo": "policy"}


def lineage_of(folders: Mapping[str, Path]) -> tuple[LineageStep, ...]:
    """data -> tokenizer -> base -> SFT -> reward model -> policy, each once, oldest first."""
    steps: dict[tuple[str, str], LineageStep] = {}
    for folder in folders.values():
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        own = {"stage": manifest["stage"], "folder": str(folder), "weights": manifest.get("weights")}
        own["inputs"] = {role: entry["digest"] for role, entry in manifest["inputs"].items()}
        for entry in [*manifest.get("lineage", []), own]:
            _add(steps, entry)
    return tuple(steps.values())


def _add(steps: dict[tuple[str, str], LineageStep], entry: dict[str, Any]) -> None:
    folder = Path(entry["folder"]).name
    for role, digest in entry["inputs"].items():
        if role.endswith("data"):
            steps.setdefault(("data", digest), LineageStep("data", f"{folder}: {role}", digest))
    kind = _KINDS.get(entry["stage"])
    digest = entry["weights"] or "-"
    if kind is not None:
        steps.setdefault((kind, f"{folder}{digest}"), LineageStep(kind, folder, digest))


def resources_of(folders: Mapping[str, Path]) -> tuple[ResourceUse, ...]:
    """Seconds, peak memory and size of each run that its manifest tells."""
    found = []
    for name, folder in (_prepared(folders) | dict(folders)).items():
        manifest = read_manifest(folder)
        if manifest is not None and "seconds" in manifest:
            found.append(
                ResourceUse(
                    stage=name,
                    seconds=manifest["seconds"],
                    peak_memory_bytes=manifest.get("peak_memory_bytes"),
                    num_parameters=manifest.get("results", {}).get("num_parameters"),
                )
            )
    return tuple(found)


def _prepared(folders: Mapping[str, Path]) -> dict[str, Path]:
    """The tokenizer's and the ranking's run behind these runs, by stage."""
    entries = [entry for folder in folders.values() for entry in (read_manifest(folder) or {}).get("lineage", [])]
    return {
        entry["stage"]: Path(entry["folder"])
        for entry in entries
        if entry["stage"] in ("tokenizer", "rank") and Path(entry["folder"]).is_dir()
    }
