"""Invariant 4, the trainer's part: 10 steps = 5 + kill + resume + 5, bit for bit on a CPU.

The kill is a real one (SIGKILL of another process) in one test; elsewhere an exception right after a step, with two
steps done since the last checkpoint, whose log lines must not appear twice.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from chatloom.data.loader import Loader
from chatloom.data.pack import Sample
from chatloom.models import build, gpt2
from chatloom.objectives.causal_lm import causal_lm
from chatloom.train.callbacks import Evaluate
from chatloom.train.metrics import read_metrics
from chatloom.train.trainer import TrainConfig, Trainer


def make(folder: Path, **options: Any) -> tuple[Trainer, Loader]:
    """A run with everything that has state: dropout, momentum, average, loader, schedule, evaluation."""
    torch.manual_seed(3)
    model = build(gpt2.Config(vocab_size=19, context_length=16, num_layers=2, width=16, num_heads=2))
    config = TrainConfig(
        dropout=0.2, ema_decay=0.9, warmup_steps=3, batch_rows=4, microbatch_rows=2, save_every_steps=5,
        learning_rate=0.01, muon_momentum_steps=8, **options,
    )  # fmt: skip
    source = np.random.default_rng(0)
    samples = [Sample(source.integers(19, size=size)) for size in source.integers(3, 17, size=40)]
    loader = Loader(samples, batch_rows=4, row_length=16, seed=1, pad=0)
    evaluate = Evaluate(lambda model: {"noise": torch.rand(()).item()}, every_steps=4)
    return Trainer(model, causal_lm, config, total_steps=10, run_folder=folder, callbacks=[evaluate]), loader


class Kill:
    """Ends the run after a step, when that step has not been logged or saved yet."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if trainer.step_index == self.step:
            raise KeyboardInterrupt

    def on_end(self, trainer: Trainer) -> None:
        pass


def everything(trainer: Trainer, loader: Loader) -> dict[str, Any]:
    state = trainer.state_dict()
    return {**state, "loader": loader.state_dict(), "random": torch.get_rng_state()}


def assert_equal(left: Any, right: Any, path: str = "") -> None:
    if isinstance(left, Tensor):
        assert torch.equal(left, right), path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_equal(left[key], right[key], f"{path}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), path
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_equal(a, b, f"{path}/{index}")
    else:
        assert left == right, path


def lines(folder: Path) -> list[dict[str, Any]]:
    """The log without what a clock says."""
    return [
        {key: value for key, value in line.items() if key != "tokens_per_second"}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


OPTIONS = {
    "adamw": {"optimizer": "adamw"},
    "muon": {"optimizer": "muon"},
    "bf16": {"optimizer": "muon", "dtype": "bf16"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_ten_steps_are_five_and_five(tmp_path: Path, options: dict[str, str]) -> None:
    whole, whole_loader = make(tmp_path / "whole", **options)
    whole.run(whole_loader)

    first, first_loader = make(tmp_path / "parts", **options)
    first.callbacks.append(Kill(8))
    with pytest.raises(KeyboardInterrupt):
        first.run(first_loader)
    assert [line["step"] for line in lines(tmp_path / "parts")] == [1, 2, 3, 4, 5, 6, 7]

    second, second_loader = make(tmp_path / "parts", **options)
    torch.manual_seed(99)  # the new process is somewhere else
    assert second.resume()
    assert second.step_index == 5
    second.run(second_loader)

    assert_equal(everything(whole, whole_loader), everything(second, second_loader))
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    assert [line["step"] for line in lines(tmp_path / "parts")] == list(range(1, 11))


def test_resuming_a_finished_run_does_nothing(tmp_path: Path) -> None:
    trainer, loader = make(tmp_path)
    trainer.run(loader)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again, loader = make(tmp_path)
    assert again.resume()
    assert again.run(loader) == {}
    assert_equal(trainer.state_dict(), again.state_dict())
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_critic_and_a_controller_travel_along(tmp_path: Path) -> None:
    class Controller:
        value = 0.0

        def state_dict(self) -> dict[str, Any]:
            return {"value": self.value, "history": [torch.tensor([self.value]), {"deep": torch.ones(2)}]}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.value = state["value"]
            assert torch.equal(state["history"][0], torch.tensor([self.value]))
            assert torch.equal(state["history"][1]["deep"], torch.ones(2))

    def pair() -> tuple[Trainer, Trainer, Controller]:
        critic, _ = make(tmp_path / "unused", optimizer="muon")
        controller = Controller()
        policy, _ = make(tmp_path / "policy")
        policy.extra_state |= {"critic": critic, "kl": controller}
        return policy, critic, controller

    policy, critic, controller = pair()
    _, loader = make(tmp_path / "unused")
    for batch in (loader.next_batch(), loader.next_batch()):
        critic.step([batch])
    policy.step([loader.next_batch()])
    controller.value = 0.1 + 0.2
    policy.save()
    same_policy, same_critic, same_controller = pair()
    with torch.no_grad():
        for module in (same_policy.model, same_critic.model):
            assert isinstance(module, nn.Module)
            for parameter in module.parameters():
                parameter.zero_()
    assert same_policy.resume()
    assert_equal(policy.state_dict(), same_policy.state_dict())
    assert_equal(critic.state_dict(), same_critic.state_dict())
    assert same_controller.value == 0.1 + 0.2


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)  # as in conftest.py: the number of threads may change the last bit of a sum
sys.path.insert(0, sys.argv[1])
from test_resume_training import make

class Sigkill:
    def on_step(self, trainer, metrics):
        if trainer.step_index == 7:
            os.kill(os.getpid(), signal.SIGKILL)
    def on_end(self, trainer):
        pass

trainer, loader = make(Path(sys.argv[2]), optimizer="muon")
trainer.callbacks.append(Sigkill())
trainer.run(loader)
"""


def test_sigkill(tmp_path: Path) -> None:
    arguments = [str(Path(__file__).parent), str(tmp_path / "parts")]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    for name in ("whole", "parts"):
        trainer, loader = make(tmp_path / name, optimizer="muon")
        assert trainer.resume() == (name == "parts")
        trainer.run(loader)
    whole, parts = (tmp_path / folder / "checkpoints" / "step_000010" for folder in ("whole", "parts"))
    assert (whole / "state.safetensors").read_bytes() == (parts / "state.safetensors").read_bytes()
    assert json.loads((whole / "state.json").read_text()) == json.loads((parts / "state.json").read_text())
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
