"""Golden trajectories: twenty updates of every training stage of the tiny quickstart, against numbers kept here.

Any change of the arithmetic, the data order, the defaults, the recipe or the miniature world shows as another
trajectory. One that is meant is written anew, and its numbers are looked at in the diff, with

    CHATLOOM_WRITE_GOLDEN=1 python -m pytest tests/golden

In fp32 throughout (Muon's iteration too), and only PPO learns from samples, so that another CPU with other roundings
stays within the tolerances: torch's plain, AVX2 and AVX-512 kernels (ATEN_CPU_CAPABILITY) differ by 1e-5 of a value.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from chatloom import config as configuration
from chatloom.chat.message import to_dicts
from chatloom.data.formats import read_conversations
from chatloom.recipes import quickstart as recipe
from chatloom.train import optimizers
from chatloom.train.metrics import read_metrics

GOLDEN = Path(__file__).parent / "trajectories.json"
STEPS = 20
WRITTEN = {
    "base": ("loss", "grad_norm"),
    "sft": ("loss", "grad_norm"),
    "reward": ("loss", "accuracy"),
    "ppo": ("objective/score", "objective/kl", "objective/gold", "policy/loss", "value/loss", "ptx/loss"),
}
RELATIVE, ABSOLUTE = 1e-3, 1e-5


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[float]]]:
    folder = tmp_path_factory.mktemp("golden")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizers, "_iteration_dtype", lambda device: torch.float32)
        return run(folder)


def run(folder: Path) -> dict[str, dict[str, list[float]]]:
    tiny = recipe.tiny(str(folder))
    recipe._write_world(folder / "data", recipe.amounts(tiny), tiny.seed)
    write_comparisons(folder)
    steps = recipe.stages(tiny)
    changes: dict[str, dict[str, Any]] = {
        "base": {"steps": STEPS, "batch_rows": 16},
        "sft": {"batch_rows": 8},
        "reward": {"batch_rows": 4, "data": str(folder / "comparisons.jsonl"), "validation_data": None},
        "ppo": {
            "iterations": 5,
            "critic_only_iterations": 0,
            "max_response_tokens": 16,
            "actor_learning_rate": 1e-3,
            "rollout_dtype": "fp32",
        },
    }
    found = {}
    for name in ("tokenizer", *changes):
        module, config = steps[name]
        if name in changes:
            config = configuration.override(config, **changes[name], dtype="fp32")
        module.run(config)
        if name in changes:
            lines = read_metrics(folder / name / "metrics.jsonl")[:STEPS]
            assert len(lines) == (5 if name == "ppo" else STEPS), name
            found[name] = {key: [line[key] for line in lines] for key in WRITTEN[name]}
    return found


def write_comparisons(folder: Path) -> None:
    """A demonstration's answer is better than the same said twice: nothing that a model had to sample."""
    records = []
    for turns in list(read_conversations(folder / "data" / "demonstrations.jsonl"))[:120]:
        answer = turns[-1].content
        records.append({"prompt": to_dicts(turns[:-1]), "chosen": answer, "rejected": f"{answer} {answer}"})
    (folder / "comparisons.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def write(rows: dict[str, dict[str, list[float]]]) -> None:
    """One line a metric, so that a diff shows what moved."""
    stages = []
    for name in WRITTEN:
        metrics = [f"  {json.dumps(key)}: {json.dumps(values)}" for key, values in rows.get(name, {}).items()]
        stages.append(f" {json.dumps(name)}: {{\n" + ",\n".join(metrics) + "\n }")
    GOLDEN.write_text("{\n" + ",\n".join(stages) + "\n}\n", encoding="utf-8")


@pytest.mark.parametrize("stage", WRITTEN)
def test_trajectory(stage: str, trajectories: dict[str, dict[str, list[float]]]) -> None:
    found = {key: [float(f"{value:.6g}") for value in values] for key, values in trajectories[stage].items()}
    kept = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("CHATLOOM_WRITE_GOLDEN"):
        write({**kept, stage: found})
        return
    assert kept.get(stage, {}).keys() == found.keys(), "write it: CHATLOOM_WRITE_GOLDEN=1 python -m pytest tests/golden"
    for key, expected in kept[stage].items():
        for step, (value, golden) in enumerate(zip(found[key], expected, strict=True), start=1):
            assert value == pytest.approx(golden, rel=RELATIVE, abs=ABSOLUTE), (
                f"{stage}, step {step}: {key} is {value}, was {golden}. If that is meant, write the file anew with "
                "CHATLOOM_WRITE_GOLDEN=1 python -m pytest tests/golden"
            )


def test_the_golden_runs_learn() -> None:
    """A golden file of a run that does not learn would guard little."""
    kept = json.loads(GOLDEN.read_text())
    for stage in ("base", "sft", "reward"):
        losses = kept[stage]["loss"]
        assert sum(losses[-4:]) < sum(losses[:4]), stage
    assert any(value > 0 for value in kept["ppo"]["objective/kl"])
