"""One update, what stops a run, and what is on disk afterwards."""

import errno
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chatloom import checkpoint
from chatloom.checkpoint import state
from chatloom.models import build, llama
from chatloom.objectives import Batch, Loss
from chatloom.objectives.causal_lm import causal_lm
from chatloom.train.metrics import read_metrics
from chatloom.train.trainer import TrainConfig, Trainer, TrainingError


class Endless:
    """A loader whose state is the number of batches given; batches are integers to fit a line to."""

    def __init__(self, poisoned: int | None = None) -> None:
        self.given, self.poisoned = 0, poisoned

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.given += 1
            value = math.nan if self.given == self.poisoned else float(self.given % 3 + 1)
            yield {"tokens": torch.full((4, 1), 7), "x": torch.full((4, 1), value)}

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


def squares(model: nn.Module, batch: Batch) -> Loss:
    """(w x - 1)^2 over the rows."""
    errors: Tensor = (model(batch["x"]) - 1).square()
    count = torch.tensor(float(len(errors)))
    return Loss(errors.sum(), count, {"half": (errors.detach().sum() / 2, count)})


def line(weight: float = 1.0) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, weight)
    return layer


def config(**changes: Any) -> TrainConfig:
    plain: dict[str, Any] = {"learning_rate": 0.1, "schedule": "constant", "clip_norm": None, "save_every_steps": 2}
    return TrainConfig(**(plain | changes))


# --- one update -----------------------------------------------------------------------------------------------


def test_a_step_by_hand() -> None:
    trainer = Trainer(line(), squares, config(weight_decay=0.0), total_steps=3, clock=iter([10.0, 12.0]).__next__)
    # (1 * 3 - 1)^2 = 4 for one row and 0 for three: mean 1; the gradient 2 * 2 * 3 = 12, divided by 4 rows: 3.
    micro = [
        {"tokens": torch.zeros(1, 5), "x": torch.full((1, 1), 3.0)},
        {"tokens": torch.zeros(3, 5), "x": torch.ones(3, 1)},
    ]
    metrics = trainer.step(micro)
    assert metrics == pytest.approx(
        {"loss": 1, "grad_norm": 3, "learning_rate": 0.1, "tokens": 20, "tokens_per_second": 10, "half": 0.5}
    )
    assert trainer.step_index == 1
    assert trainer.parameters[0].item() == pytest.approx(1 - 0.1)  # Adam's first update is the learning rate
    assert trainer.parameters[0].grad is None


def test_padding_is_not_counted_as_tokens() -> None:
    trainer = Trainer(line(), squares, config(), total_steps=1)
    documents = torch.tensor([[1, 1, 2, 0], [1, 0, 0, 0]])
    assert trainer.step([{"documents": documents, "x": torch.ones(2, 1) * 2}])["tokens"] == 4


def test_the_whole_gradient_is_clipped_after_the_division() -> None:
    layer = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(layer.weight)
    seen: list[Tensor] = []
    trainer = Trainer(layer, squares, config(clip_norm=0.5), total_steps=1)
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: (seen.append(layer.weight.grad.clone()), step())[1]  # type: ignore[union-attr,assignment,func-returns-value,method-assign]
    micro = [{"x": torch.tensor([[3.0, 4.0]])}, {"x": torch.tensor([[3.0, 4.0]])}]
    assert trainer.step(micro)["grad_norm"] == pytest.approx(10)  # -2 * (3, 4), the mean over two rows
    torch.testing.assert_close(seen[0], torch.tensor([[-0.3, -0.4]]))


def test_learning_rate_follows_the_schedule() -> None:
    trainer = Trainer(line(), squares, config(schedule="linear", final_learning_rate_ratio=0.0), total_steps=4)
    loader = iter(Endless())
    assert [trainer.step([next(loader)])["learning_rate"] for _ in range(4)] == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_it_learns() -> None:
    torch.manual_seed(0)
    model = build(llama.Config(vocab_size=11, context_length=8, num_layers=1, width=16, num_heads=2,
                               num_key_value_heads=2, inner_width=32))  # fmt: skip
    tokens = torch.randint(11, (4, 8))
    targets = tokens.roll(-1, 1)
    targets[:, -1] = -100
    options = config(optimizer="muon", learning_rate=0.02, clip_norm=1.0)
    trainer = Trainer(model, causal_lm, options, total_steps=60)
    metrics = [trainer.step([{"tokens": tokens, "targets": targets}]) for _ in range(60)]
    assert metrics[0]["loss"] > 2
    assert metrics[-1]["loss"] < 0.1
    assert metrics[-1]["accuracy"] == 1


def test_two_trainers_side_by_side() -> None:
    """Policy and critic: each steps its own weights; one is saved within the other."""
    critic = Trainer(line(3.0), squares, config(), total_steps=9)
    policy = Trainer(line(), squares, config(), total_steps=9, extra_state={"critic": critic})
    batch: Batch = {"x": torch.full((2, 1), 2.0)}
    policy.step([batch])
    assert critic.parameters[0].item() == 3.0
    critic.step([batch])
    assert critic.step_index == policy.step_index == 1


# --- options that reach the model -----------------------------------------------------------------------------


def test_dropout_and_checkpointing_are_set_wherever_they_are() -> None:
    model = build(llama.Config(vocab_size=11, width=16, num_heads=2, num_key_value_heads=2, inner_width=16))
    wrapper = nn.ModuleDict({"trunk": model})
    Trainer(wrapper, causal_lm, config(dropout=0.2, gradient_checkpointing=True), total_steps=1)
    assert model.gradient_checkpointing
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.2}


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (line(), {"dropout": 0.1}, "has no dropout layers"),
        (line(), {"gradient_checkpointing": True}, "cannot recompute activations"),
        (line().to(torch.bfloat16), {}, "trained weights are fp32"),
    ],
)
def test_options_the_model_cannot_follow(model: nn.Module, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(model, squares, config(**changes), total_steps=1)


# --- what stops a run -----------------------------------------------------------------------------------------


def test_nan_stops_before_the_update_and_names_the_batch(tmp_path: Path) -> None:
    trainer = Trainer(line(), squares, config(microbatch_rows=2), total_steps=9, run_folder=tmp_path)
    with pytest.raises(TrainingError) as caught:
        trainer.run(Endless(poisoned=4))
    message = str(caught.value)
    assert "before update 4 of 9" in message
    assert "micro-batch 1 of 2 on rank 0" in message
    assert str(tmp_path / "checkpoints" / "step_000002") in message
    assert "learning_rate" in message
    assert trainer.parameters[0].isfinite().all()
    assert trainer.parameters[0].grad is None
    assert [each["step"] for each in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_nan_in_the_gradient_alone_stops_too() -> None:
    def sqrt_at_zero(model: nn.Module, batch: Batch) -> Loss:
        return Loss((model(batch["x"]) * 0).sqrt().sum(), torch.tensor(1.0))

    trainer = Trainer(line(), sqrt_at_zero, config(), total_steps=1)
    with pytest.raises(TrainingError, match=r"norm of the gradient is nan.*No checkpoint had been saved"):
        trainer.step([{"x": torch.ones(1, 1)}])
    assert trainer.parameters[0].item() == 1


def test_exploding_loss_stops_and_no_checkpoint_is_taken_of_it(tmp_path: Path) -> None:
    def growing(model: nn.Module, batch: Batch) -> Loss:
        loss = model(batch["x"]).sum() * 0 + (10.0 if trainer.step_index >= 3 else 1.0)
        return Loss(loss, torch.tensor(1.0))

    trainer = Trainer(line(), growing, config(max_loss_patience=4), total_steps=99, run_folder=tmp_path)
    with pytest.raises(TrainingError, match=r"loss, 10.000, has been above 3.0 times its running average of 1.000"):
        trainer.run(Endless())
    assert trainer.step_index == 6
    assert checkpoint.latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step_000002"


def test_nothing_to_learn_from() -> None:
    def nothing(model: nn.Module, batch: Batch) -> Loss:
        return Loss(model(batch["x"]).sum() * 0, torch.tensor(0.0))

    with pytest.raises(TrainingError, match=r"nothing in the batch counts.*Check the data"):
        Trainer(line(), nothing, config(), total_steps=1).step([{"x": torch.ones(1, 1)}])


def test_loader_that_ends_early() -> None:
    with pytest.raises(ValueError, match="ended after 1 of 3 updates"):
        Trainer(line(), squares, config(), total_steps=3).run([{"x": torch.ones(1, 1)}])


# --- the run folder -------------------------------------------------------------------------------------------


def test_checkpoints_are_pruned_and_the_last_step_is_saved(tmp_path: Path) -> None:
    stale = tmp_path / "checkpoints" / ".step_000001.killed"
    stale.mkdir(parents=True)
    trainer = Trainer(line(), squares, config(keep_checkpoints=2), total_steps=7, run_folder=tmp_path)
    trainer.run(Endless())
    folders = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert folders == ["step_000006", "step_000007"]


def test_log_every(tmp_path: Path) -> None:
    trainer = Trainer(line(), squares, config(log_every_steps=3), total_steps=7, run_folder=tmp_path)
    trainer.run(Endless())
    assert [each["step"] for each in read_metrics(tmp_path / "metrics.jsonl")] == [3, 6, 7]


def test_disk_full_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(line(), squares, config(), total_steps=9, run_folder=tmp_path)
    real, calls = state.save_file, []

    def full(*args: Any, **options: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            Path(args[1]).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args, **options)

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(TrainingError) as caught:
        trainer.run(Endless())
    message = str(caught.value)
    assert "step_000004 could not be written" in message
    assert "No space left on device" in message
    assert f"kept: {tmp_path / 'checkpoints' / 'step_000002'}" in message
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000002"]
    again = Trainer(line(), squares, config(), total_steps=9, run_folder=tmp_path)
    assert again.resume()
    assert again.step_index == 2


def test_resume_without_a_checkpoint(tmp_path: Path) -> None:
    assert not Trainer(line(), squares, config(), total_steps=1, run_folder=tmp_path).resume()


def test_resume_into_another_model(tmp_path: Path) -> None:
    Trainer(line(), squares, config(), total_steps=1, run_folder=tmp_path).run(Endless())
    for model, message in (
        (nn.Linear(2, 1, bias=False), r"weight is \(1, 1\) in the checkpoint and \(1, 2\) now"),
        (nn.Linear(1, 1), "only the model has bias"),
    ):
        with pytest.raises(ValueError, match=message):
            Trainer(model, squares, config(), total_steps=1, run_folder=tmp_path).resume()
    with pytest.raises(ValueError, match="averaged weights: only the model has weight"):
        Trainer(line(), squares, config(ema_decay=0.9), total_steps=1, run_folder=tmp_path).resume()


def test_resume_with_another_number_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainer(line(), squares, config(), total_steps=1, run_folder=tmp_path).run(Endless())
    trainer = Trainer(line(), squares, config(), total_steps=1, run_folder=tmp_path)
    monkeypatch.setattr("chatloom.runtime.world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"saved by 1 ranks.*nproc-per-node 1"):
        trainer.resume()


def test_resume_with_a_loader_that_has_no_state(tmp_path: Path) -> None:
    Trainer(line(), squares, config(), total_steps=1, run_folder=tmp_path).run(Endless())
    trainer = Trainer(line(), squares, config(), total_steps=2, run_folder=tmp_path)
    trainer.resume()
    with pytest.raises(ValueError, match="a list cannot be resumed at update 1"):
        trainer.run([{"x": torch.ones(1, 1)}])


def test_the_checkpoint_is_safetensors_and_json(tmp_path: Path) -> None:
    Trainer(line(), squares, config(ema_decay=0.9), total_steps=2, run_folder=tmp_path).run(Endless())
    folder = checkpoint.latest_checkpoint(tmp_path)
    assert folder is not None
    assert sorted(path.name for path in folder.iterdir()) == ["state.json", "state.safetensors"]
    assert json.loads((folder / "state.json").read_text())["extra"] == {"loader": {"given": 2}}
