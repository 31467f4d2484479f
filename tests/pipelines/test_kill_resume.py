"""Invariant 4 for whole commands: killed at any moment, the same command goes on to the same weights, bit for bit.

Each stage is killed over and over, at the moments where it would hurt (a step not logged, a checkpoint half written,
the model half written, everything written but the manifest), then given once more. What comes out has to equal an
uninterrupted run: the model's bytes, the numbers of every step, each step once.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from killing import kill_at, kill_when

from chatloom import cli
from chatloom.train.metrics import read_metrics

# What a clock says differs from run to run; where a run lies does too.
CLOCKED = ("tokens_per_second", "seconds")

LOGGED, SAVED = "chatloom.train.metrics:MetricsLog.write", "chatloom.train.trainer:save_tree"
TENSORS, MODEL = "chatloom.checkpoint.state:save_file", "chatloom.checkpoint.saving:write_tensors"
FINISH = "chatloom.stages.run:Run.finish"
# Moments in a run of at least ten steps that saves every third: (what, which call of the resumed run, when).
MOMENTS: list[tuple[str, int, Any]] = [
    (LOGGED, 2, "before"),  # a step that nobody wrote down; no checkpoint yet
    (LOGGED, 5, "after"),  # two steps beyond the checkpoint of step 3
    (TENSORS, 1, "after"),  # half of the checkpoint of step 6
    (SAVED, 1, "after"),  # the checkpoint of step 6, and step 3's still beside it
    ("chatloom.checkpoint:save_pretrained", 1, "before"),  # all steps done
    (MODEL, 1, "before"),  # half of the model's folder
    (FINISH, 1, "before"),  # all but the manifest
]

TRAINING = [
    *("--batch-rows", "8", "--row-length", "64", "--dropout", "0.1", "--ema-decay", "0.9", "--warmup-steps", "2"),
    *("--save-every-steps", "3", "--evaluate-every-steps", "4", "--learning-rate", "1e-3"),
]


def stage_arguments(name: str, quickstart: Path) -> list[str]:
    root = {each.name: str(each) for each in quickstart.iterdir()}
    corpus, demonstrations, prompts = (
        str(quickstart / "data" / f"{each}.jsonl") for each in ("corpus", "demonstrations", "prompts")
    )
    comparisons = str(quickstart / "comparisons" / "comparisons.jsonl")
    size = ["--width", "16", "--num-layers", "2", "--inner-width", "24", "--steps", "12"]
    muon = ["--optimizer", "muon", "--muon-momentum-steps", "8", "--dtype", "bf16"]
    ppo = [
        *("--iterations", "5", "--episodes-per-iteration", "8", "--minibatches", "2", "--epochs-per-batch", "2"),
        *("--max-response-tokens", "8", "--ptx-coefficient", "2", "--ptx-rows", "2", "--row-length", "64"),
        *("--kl-controller", "adaptive", "--kl-target", "0.001", "--reward-normalisation", "reference"),
        *("--gold-task", "miniature", "--save-every-steps", "2", "--actor-learning-rate", "1e-3"),
        *("--actor-ema-decay", "0.9", "--warmup-iterations", "1", "--anneal-learning-rate"),
    ]
    return {
        "pretrain": ["pretrain", "--data", corpus, "--tokenizer", root["tokenizer"], *size, *TRAINING, *muon],
        "sft": ["sft", "--model", root["base"], "--data", demonstrations, "--epochs", "1", *TRAINING],
        "reward": ["reward", "--model", root["sft"], "--data", comparisons, "--epochs", "6", *TRAINING],
        "ppo": [
            "ppo",
            "--model",
            root["sft"],
            "--reward",
            root["reward"],
            "--data",
            prompts,
            "--ptx-data",
            corpus,
            *ppo,
        ],
    }[name]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if not key.startswith(CLOCKED)}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def results(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    return {key: value for key, value in manifest["results"].items() if not key.startswith(CLOCKED)}


def assert_same_run(whole: Path, parts: Path) -> None:
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert lines(whole) == lines(parts)
    steps = [line["step"] for line in lines(whole)]
    assert steps == list(range(1, len(steps) + 1))
    assert results(whole) == results(parts)
    assert {path.name for path in whole.iterdir()} == {path.name for path in parts.iterdir()}  # nothing is left over
    assert os.listdir(whole / "checkpoints") == os.listdir(parts / "checkpoints")  # noqa: PTH208


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo"])
def test_killed_again_and_again(stage: str, quickstart: Path, tmp_path: Path) -> None:
    arguments = stage_arguments(stage, quickstart)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli.main([*arguments, "--output-dir", str(whole)]) == 0
    assert len(lines(whole)) >= (5 if stage == "ppo" else 10)
    moments = list(MOMENTS)
    if stage == "pretrain":
        moments.insert(0, ("chatloom.data.store:np.save", 1, "before"))  # half of the token store
    if stage == "ppo":
        # Five iterations, saved after the second, the fourth and the last.
        moments[:4] = [(LOGGED, 1, "before"), (LOGGED, 3, "after"), (TENSORS, 1, "after")]
        moments.insert(3, (SAVED, 1, "after"))
        moments.insert(4, ("chatloom.rl.loop:PPO._learn", 1, "after"))
        moments.insert(5, ("chatloom.train.trainer:Trainer.step", 2, "after"))  # the critic has not followed
    for moment, call, when in moments:
        kill_at([*arguments, "--output-dir", str(parts)], moment, call=call, when=when)
    assert cli.main([*arguments, "--output-dir", str(parts)]) == 0
    assert_same_run(whole, parts)


def test_other_stages_start_again(quickstart: Path, tmp_path: Path) -> None:
    """Tokenizer and comparisons take moments: killed, they begin anew, and what they write is whole."""
    corpus = str(quickstart / "data" / "corpus.jsonl")
    tokenizer = ["tokenizer", "--data", corpus, "--vocab-size", "300", "--output-dir"]
    rank = ["rank", "--model", str(quickstart / "sft"), "--num-prompts", "12", "--max-tokens", "8"]
    rank += ["--agreement", "0.52", "--output-dir"]
    for arguments, moment, files in (
        (tokenizer, "chatloom.chat.templates:ChatTemplate.save", ("tokenizer.json", "chat_template.jinja")),
        (rank, "chatloom.stages.rank:_split", ("comparisons.jsonl", "validation.jsonl")),
    ):
        whole, parts = (str(tmp_path / f"{arguments[0]}_{name}") for name in ("whole", "parts"))
        assert cli.main([*arguments, whole]) == 0
        kill_at([*arguments, parts], moment, when="before")
        kill_at([*arguments, parts], FINISH, when="before")
        assert cli.main([*arguments, parts]) == 0
        for file in files:
            assert (Path(whole) / file).read_bytes() == (Path(parts) / file).read_bytes(), file
        assert results(Path(whole)) == results(Path(parts))


# What an interrupted quickstart was doing when it was killed: each file comes while a stage is at work.
KILLED_WHEN = [
    "data/demonstrations.jsonl",
    "base/metrics.jsonl",
    "sft/manifest.json",
    "sft/model.safetensors",
    "comparisons/manifest.json",
    "reward/checkpoints",
    "ppo/metrics.jsonl",
    "ppo/config.json",
    "ppo_without_ptx/manifest.json",
    "evaluation/manifest.json",
]


def test_quickstart_killed_in_every_stage(quickstart: Path, tmp_path: Path) -> None:
    """Also: the same seed in another folder gives the same weights."""
    folder = tmp_path / "quickstart"
    arguments = ["quickstart", "--tiny", "--output-dir", str(folder)]
    for file in KILLED_WHEN:
        kill_when(arguments, folder / file)
    assert cli.main(arguments) == 0
    for stage in ("base", "sft", "reward", "ppo", "ppo_without_ptx"):
        assert_same_run(quickstart / stage, folder / stage)
    for file in ("tokenizer/tokenizer.json", "comparisons/comparisons.jsonl", "data/corpus.jsonl"):
        assert (quickstart / file).read_bytes() == (folder / file).read_bytes(), file
    reports = [json.loads((each / "report.json").read_text()) for each in (quickstart, folder)]
    for part in ("stages", "reward", "best_of_n", "paths", "samples", "diagnostics", "derived"):
        assert reports[0][part] == reports[1][part], part


def test_ctrl_c_says_how_to_go_on(quickstart: Path, tmp_path: Path) -> None:
    """A process of its own, as a user has it; what it leaves is finished and compared."""
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    arguments = [*stage_arguments("pretrain", quickstart), "--steps", "120"]
    program = [sys.executable, "-m", "chatloom.cli", *arguments, "--output-dir", str(parts)]
    process = subprocess.Popen(
        program,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path.cwd(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background job ignores it
    )
    end = time.monotonic() + 120
    while not list(parts.glob("checkpoints/step_*")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command again" in errors
    assert "Traceback" not in errors
    assert 0 < len(lines(parts)) < 120
    for folder in (parts, whole):
        assert cli.main([*arguments, "--output-dir", str(folder)]) == 0
    assert_same_run(whole, parts)
