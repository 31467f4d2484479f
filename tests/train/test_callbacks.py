"""Callbacks and progress displays, with a clock and a console of the test's own."""

import io
from collections.abc import Callable

import torch
from rich.console import Console
from torch import Tensor, nn

from chatloom.objectives import Batch, Loss
from chatloom.train.callbacks import Evaluate, ProgressBar
from chatloom.train.progress import progress
from chatloom.train.trainer import TrainConfig, Trainer


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def squares(model: nn.Module, batch: Batch) -> Loss:
    errors: Tensor = model(batch["tokens"].float()).square()
    return Loss(errors.sum(), torch.tensor(float(len(errors))))


def batches(count: int) -> list[Batch]:
    return [{"tokens": torch.full((2, 3), index)} for index in range(1, count + 1)]


def make(*callbacks: Evaluate | ProgressBar, total_steps: int = 5, ema_decay: float | None = None) -> Trainer:
    torch.manual_seed(0)
    config = TrainConfig(max_loss_ratio=None, ema_decay=ema_decay, dropout=0.5)
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    return Trainer(model, squares, config, total_steps=total_steps, callbacks=callbacks)


def test_evaluate_every_and_at_the_end() -> None:
    seen = []

    def measure(model: nn.Module) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append(trainer.step_index)
        return {"validation/loss": 1.0}

    trainer = make(Evaluate(measure, every_steps=2))
    assert trainer.run(batches(5))["validation/loss"] == 1.0
    assert seen == [2, 4, 5]
    assert trainer.model.training


def test_evaluating_changes_nothing_else() -> None:
    def draw(model: nn.Module) -> dict[str, float]:
        return {"x": torch.rand(100).sum().item()}

    def weights(*callbacks: Evaluate) -> Tensor:
        trainer = make(*callbacks)
        trainer.run(batches(5))
        return trainer.parameters[0]

    assert torch.equal(weights(), weights(Evaluate(draw, every_steps=1)))


def test_evaluate_can_use_the_average() -> None:
    def first_weight(model: nn.Module) -> dict[str, float]:
        return {"weight": next(model.parameters())[0, 0].item()}

    trainer = make(Evaluate(first_weight, every_steps=1, averaged=True), ema_decay=0.9)
    metrics = trainer.run(batches(5))
    assert trainer.ema is not None
    assert metrics["weight"] == trainer.ema.averages["0.weight"][0, 0].item()
    assert metrics["weight"] != trainer.parameters[0][0, 0].item()


def lines_of(write: Callable[[Console, Clock], None]) -> list[str]:
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    write(console, Clock())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_plain_lines_come_at_intervals_and_at_the_end() -> None:
    def write(console: Console, clock: Clock) -> None:
        with progress("sample", 100, console=console, clock=clock, plain_every_seconds=10) as advance:
            for index in range(50):
                clock.now += 1
                advance(2, details=f"kept {index}")

    assert lines_of(write) == [
        "sample 20/100 · ETA 0:40 · kept 9",
        "sample 40/100 · ETA 0:30 · kept 19",
        "sample 60/100 · ETA 0:20 · kept 29",
        "sample 80/100 · ETA 0:10 · kept 39",
        "sample 100/100 · kept 49",
    ]


def test_a_resumed_display_counts_only_fresh_work_for_its_rate() -> None:
    def write(console: Console, clock: Clock) -> None:
        with progress("sample", 100, done=90, console=console, clock=clock, plain_every_seconds=5) as advance:
            clock.now += 5
            advance(5)

    assert lines_of(write) == ["sample 95/100 · ETA 0:05"]


def test_bar_in_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    make(ProgressBar("pretrain", console=console)).run(batches(5))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "pretrain" in shown
    assert "5/5" in shown
    assert "tokens/s" in shown


def test_bar_as_lines() -> None:
    shown = lines_of(
        lambda console, clock: make(ProgressBar("sft", console=console, clock=clock)).run(batches(5)) and None
    )
    assert len(shown) == 1
    assert shown[0].startswith("sft 5/5 · loss ")
