"""What happens after an update: evaluate, show, log, save. The trainer calls them in the order given.

A callback may add to the metrics of the step; those after it see that. Every rank calls all of them, since
evaluating and saving take all ranks; the ones that write do so on the first alone.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from rich.console import Console
from torch import nn

from chatloom import runtime
from chatloom.train.metrics import MetricsLog
from chatloom.train.progress import Advance, Clock, progress

if TYPE_CHECKING:
    from chatloom.train.trainer import Trainer


class Callback(Protocol):
    """Called by `Trainer.run`."""

    def on_step(self, trainer: "Trainer", metrics: dict[str, float]) -> None:
        """After update number `trainer.step_index`; may add to `metrics`."""

    def on_end(self, trainer: "Trainer") -> None:
        """When the run is over, for whatever reason."""


class Evaluate:
    """Merges what `function(model)` measures into the metrics, every so many steps and at the end.

    The model is in evaluation mode and without gradients, and torch's generator is put back afterwards: how often
    one evaluates changes nothing else. With `averaged` the averaged weights are evaluated, if there are any.
    """

    def __init__(
        self, function: Callable[[nn.Module], dict[str, float]], *, every_steps: int, averaged: bool = False
    ) -> None:
        self.function, self.every_steps, self.averaged = function, every_steps, averaged

    def on_step(self, trainer: "Trainer", metrics: dict[str, float]) -> None:
        """Evaluate if it is due."""
        if trainer.step_index % self.every_steps and not trainer.finished:
            return
        random_state, training = runtime.random_state(), trainer.model.training
        average = trainer.ema.applied() if self.averaged and trainer.ema else contextlib.nullcontext()
        trainer.model.eval()
        with torch.no_grad(), average:
            metrics.update(self.function(trainer.model))
        trainer.model.train(training)
        runtime.restore_random_state(random_state)

    def on_end(self, trainer: "Trainer") -> None:
        """Nothing to do."""


class ProgressBar:
    """Shows steps, time left, loss and tokens per second; see `progress`."""

    def __init__(
        self, description: str, *, console: Console | None = None, clock: Clock = time.monotonic,
        plain_every_seconds: float = 10.0,
    ) -> None:  # fmt: skip
        self.description, self.console, self.clock = description, console, clock
        self.plain_every_seconds = plain_every_seconds
        self._stack = contextlib.ExitStack()
        self._advance: Advance | None = None
        self._rate: float | None = None

    def on_step(self, trainer: "Trainer", metrics: dict[str, float]) -> None:
        """Move the bar."""
        if self._advance is None:
            display = progress(
                self.description, trainer.total_steps, done=trainer.step_index - 1, console=self.console,
                clock=self.clock, plain_every_seconds=self.plain_every_seconds,
            )  # fmt: skip
            self._advance = self._stack.enter_context(display)
        rate = metrics["tokens_per_second"]
        self._rate = rate if self._rate is None else 0.9 * self._rate + 0.1 * rate
        self._advance(details=f"loss {metrics['loss']:.3f} · {self._rate:,.0f} tokens/s")

    def on_end(self, trainer: "Trainer") -> None:
        """Leave the bar as it stands."""
        self._stack.close()
        self._advance = None


class LogMetrics:
    """Writes `metrics.jsonl` every so many steps, and whenever a callback before it added something."""

    def __init__(self, run_folder: Path | str, *, every_steps: int = 1, tensorboard: bool = False) -> None:
        self.run_folder, self.every_steps, self.tensorboard = run_folder, every_steps, tensorboard
        self._log: MetricsLog | None = None

    def on_step(self, trainer: "Trainer", metrics: dict[str, float]) -> None:
        """Write the step's line if it is due."""
        if self._log is None:
            self._log = MetricsLog(self.run_folder, resume_step=trainer.step_index - 1, tensorboard=self.tensorboard)
        added = metrics.keys() - trainer.step_metrics
        if trainer.step_index % self.every_steps == 0 or trainer.finished or added:
            self._log.write(trainer.step_index, metrics)

    def on_end(self, trainer: "Trainer") -> None:
        """Close the file."""
        if self._log is not None:
            self._log.close()
            self._log = None


class SaveCheckpoint:
    """Saves the trainer every so many steps and at the end, but never while the loss is exploding."""

    def __init__(self, *, every_steps: int) -> None:
        self.every_steps = every_steps

    def on_step(self, trainer: "Trainer", metrics: dict[str, float]) -> None:
        """Save if it is due."""
        due = trainer.step_index % self.every_steps == 0 and trainer.guard.healthy
        if due or trainer.finished:
            trainer.save()

    def on_end(self, trainer: "Trainer") -> None:
        """Nothing to do."""
