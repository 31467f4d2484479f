"""Stages with adapters through the command line: what a run's root holds, and killed runs go on bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import kill_at
from safetensors.torch import load_file

import chatloom
from chatloom import checkpoint, cli
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.stages import ppo
from chatloom.stages.run import read_manifest
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer
from chatloom.train.metrics import read_metrics

WORDS = ("bread", "tea", "ink", "wool", "salt", "rope", "glass", "honey", "paper", "coal")
ROOT = {"adapter_base.json", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"}
ROOT |= {"checkpoints", "manifest.json", "metrics.jsonl", "tokenizer.json", "tokenizer_config.json"}
TRAINING = [
    *("--batch-rows", "2", "--ema-decay", "0.9", "--save-every-steps", "3"),
    *("--evaluate-every-steps", "4", "--learning-rate", "1e-2"),
]
LORA = ["--adapter", "lora", "--adapter-rank", "4", "--adapter-dropout", "0.1"]


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, data, and an SFT and a reward adapter on that base."""
    folder = tmp_path_factory.mktemp("adapters")
    chat = ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE)
    checkpoint.save_pretrained(folder / "base", tiny_llama(context_length=128), chat)
    write(folder / "sft.jsonl", [{"prompt": f"Who has {word}?", "completion": f"Ada has {word}."} for word in WORDS])
    write(
        folder / "comparisons.jsonl",
        [{"prompt": f"Who has {word}?", "chosen": f"Ada has {word}.", "rejected": "No."} for word in WORDS],
    )
    write(folder / "prompts.jsonl", [{"prompt": f"Who has {word}?"} for word in WORDS])
    for name in ("sft", "reward"):
        assert cli.main([*arguments(name, folder), "--output-dir", str(folder / name)]) == 0
    return folder


def arguments(stage: str, made: Path, *, adapter: list[str] | None = None, model: str = "base") -> list[str]:
    adapter = LORA if adapter is None else adapter
    base = ["--model", str(made / model)]
    if stage == "sft":
        return ["sft", *base, "--data", str(made / "sft.jsonl"), "--epochs", "5", *TRAINING, *adapter]
    if stage == "reward":
        return ["reward", *base, "--data", str(made / "comparisons.jsonl"), "--epochs", "3", *TRAINING, *adapter]
    return [
        *("ppo", *base, "--reward", str(made / "reward"), "--data", str(made / "prompts.jsonl")),
        *("--iterations", "5", "--episodes-per-iteration", "8", "--minibatches", "2", "--epochs-per-batch", "2"),
        *("--max-response-tokens", "8", "--ptx-coefficient", "0", "--save-every-steps", "2"),
        *("--actor-learning-rate", "1e-2", "--critic-learning-rate", "1e-2", "--actor-ema-decay", "0.9"),
        *("--adapter", "lora", "--adapter-rank", "4"),
    ]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def lines(folder: Path) -> list[dict[str, Any]]:
    clocked = ("tokens_per_second", "seconds")
    return [
        {key: value for key, value in line.items() if not key.startswith(clocked)}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def assert_same_run(whole: Path, parts: Path) -> None:
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert lines(whole) == lines(parts)
    assert names(whole) == names(parts)
    assert names(whole) - {"calibration.svg"} == ROOT
    assert os.listdir(whole / "checkpoints") == os.listdir(parts / "checkpoints")  # noqa: PTH208


MOMENTS: list[tuple[str, int, Any]] = [
    ("chatloom.train.metrics:MetricsLog.write", 2, "before"),
    ("chatloom.train.metrics:MetricsLog.write", 3, "after"),
    ("chatloom.checkpoint.state:save_file", 1, "after"),
    ("chatloom.adapters.files:write_adapter", 1, "before"),
    ("chatloom.adapters.files:asdict", 1, "before"),  # the tensors are written, and nothing else
    ("chatloom.stages.run:Run.finish", 1, "before"),
]


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_killed_again_and_again(stage: str, made: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command = arguments(stage, made)
    assert cli.main([*command, "--output-dir", str(whole)]) == 0
    assert len(lines(whole)) >= 5
    for moment, call, when in MOMENTS:
        kill_at([*command, "--output-dir", str(parts)], moment, call=call, when=when)
    assert cli.main([*command, "--output-dir", str(parts)]) == 0
    assert_same_run(whole, parts)
    states = [load_file(path) for path in whole.rglob("state.safetensors")]
    held = {name for state in states for name in state if "/weights/" in name}
    assert held
    assert all(".lora." in name or "_head." in name for name in held)  # checkpoints hold what is trained alone


@pytest.mark.parametrize("adapter", ["prompt", "prefix"])
def test_virtual_tokens_through_all_stages(adapter: str, made: Path, tmp_path: Path) -> None:
    chosen = ["--adapter", adapter, "--adapter-tokens", "4"]
    for stage in ("sft", "reward"):
        assert cli.main([*arguments(stage, made, adapter=chosen), "--output-dir", str(tmp_path / stage)]) == 0
    assert load_file(tmp_path / "sft" / "adapter_model.safetensors")["prompt_embeddings"].shape[0] == 4
    command = arguments("ppo", made)[: -len(["--adapter", "lora", "--adapter-rank", "4"])]
    command[command.index("--reward") + 1] = str(tmp_path / "reward")
    assert cli.main([*command, *chosen, "--output-dir", str(tmp_path / "ppo")]) == 0
    assert lines(tmp_path / "ppo")[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    lm = chatloom.load(tmp_path / "ppo", device="cpu")
    assert lm.engine.context_length == 124
    assert isinstance(lm.chat([{"role": "user", "content": "Who has tea?"}], max_tokens=4), str)


def test_a_run_is_opened_with_its_base(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm = chatloom.load(made / "sft", device="cpu")
    base = chatloom.load(made / "base", device="cpu")
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert not torch.allclose(lm.model(tokens), base.model(tokens), atol=1e-3)
    assert names(made / "sft") == ROOT
    manifest = read_manifest(made / "sft")
    assert manifest is not None
    assert manifest["weights"] == checkpoint.weights_digest(made / "sft")
    with pytest.raises(ValueError, match="is a reward model"):
        chatloom.load(made / "reward")
    assert checkpoint.load_reward(made / "reward").model.gain != 1.0
    assert "fp32" not in str(chatloom.load(made / "sft", dtype="bf16", device="cpu").model.embedding.weight.dtype)


def test_merged_runs_and_adapters_upon_adapters(made: Path, tmp_path: Path) -> None:
    """A merged run is an ordinary model; a further stage on an adapter takes it merged, and finds it again."""
    merged = tmp_path / "merged"
    assert cli.main([*arguments("sft", made), "--adapter-merge", "--output-dir", str(merged)]) == 0
    tokens = torch.tensor([[5, 6, 7]])
    attached = chatloom.load(made / "sft", device="cpu").model(tokens)
    whole = chatloom.load(merged, device="cpu").model(tokens)
    assert (whole - attached).abs().max() < 1e-4
    assert "adapter_config.json" not in names(merged)
    upon = tmp_path / "upon"
    command = arguments("reward", made)
    command[command.index("--model") + 1] = str(made / "sft")
    assert cli.main([*command, "--output-dir", str(upon)]) == 0
    assert checkpoint.is_adapter_of(upon, made / "sft")
    assert not checkpoint.is_adapter_of(upon, made / "base")
    checkpoint.load_reward(upon)
    full = tmp_path / "full"
    command = arguments("sft", made, adapter=[])
    command[command.index("--model") + 1] = str(made / "sft")
    assert cli.main([*command, "--epochs", "1", "--output-dir", str(full)]) == 0
    assert (full / "model.safetensors").exists()


def test_ppo_shares_the_base_or_says_that_it_does_not(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pointers: list[set[int]] = []
    built = ppo.PPO

    def noted(*args: Any, **options: Any) -> Any:
        loop = built(*args, **options)
        trunks = (loop.actor.model, loop.reference, loop.reward.model.trunk, loop.critic.model.trunk)
        pointers.append({trunk.embedding.weight.data_ptr() for trunk in trunks})
        return loop

    monkeypatch.setattr(ppo, "PPO", noted)
    command = [*arguments("ppo", made), "--iterations", "1", "--warmup-iterations", "0"]
    assert cli.main([*command, "--output-dir", str(tmp_path / "one")]) == 0
    assert "not an adapter of" not in capsys.readouterr().out
    assert [len(each) for each in pointers] == [1]
    assert cli.main([*arguments("reward", made, adapter=[]), "--output-dir", str(tmp_path / "whole")]) == 0
    command[command.index("--reward") + 1] = str(tmp_path / "whole")
    assert cli.main([*command, "--output-dir", str(tmp_path / "two")]) == 0
    assert "is not an adapter of" in " ".join(capsys.readouterr().out.split())
    assert [len(each) for each in pointers] == [1, 2]  # the critic is on the reward model's weights


def test_bad_options(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(command: list[str], part: str) -> None:
        capsys.readouterr()
        try:
            status = cli.main([*command, "--output-dir", str(tmp_path / "run")])
        except SystemExit as error:  # what a config refuses
            status = error.code
        assert status == 2
        assert part in " ".join(capsys.readouterr().err.split())

    refused([*arguments("ppo", made), "--adapter-dropout", "0.1"], "adapter_dropout would make the ratio")
    refused(arguments("sft", made, adapter=["--adapter-rank", "3"]), "adapter_rank would be ignored")
    refused(
        [*arguments("sft", made), "--adapter-targets", "q_proj", "qproj"], "no linear layer's path ends with 'qproj'"
    )
    prefix = ["--adapter", "prefix", "--adapter-tokens", "4"]
    tuned = tmp_path / "tuned"
    assert cli.main([*arguments("sft", made, adapter=prefix), "--epochs", "1", "--output-dir", str(tuned)]) == 0
    command = arguments("sft", made)
    command[command.index("--model") + 1] = str(tuned)
    refused(command, "virtual tokens before its text, which cannot be trained further")


def test_two_ranks_reduce_the_adapter_alone(made: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    command = arguments("sft", made, adapter=["--adapter", "lora", "--adapter-rank", "4"])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [*launcher, "-m", "chatloom.cli", *command, "--output-dir", str(two)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    assert cli.main([*command, "--output-dir", str(one)]) == 0
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-2, atol=1e-3)
