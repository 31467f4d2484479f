"""The training loop: accumulate, divide once by what counted, reduce, clip, update, schedule.

Facts worth knowing:
* An objective returns a sum and a count; gradients of the sums of all micro-batches and ranks are added up and
  divided once by the whole count. So the update is the same however a batch is cut (invariant 3 of the philosophy).
* `step` is one update from given micro-batches: PPO calls it in its own epochs. `run` loops over a loader.
* A checkpoint holds weights, optimizer, average, generators of all ranks, loader and whatever else is registered.
  10 steps are 5, a kill, and 5 more, bit for bit on a CPU (invariant 4).
* Data parallelism is a plain sum of gradients over ranks, here, with no wrapper around the model.
"""

import math
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chatloom import checkpoint, runtime
from chatloom.data.pack import split_rows
from chatloom.objectives import Batch, Objective
from chatloom.train import schedules
from chatloom.train.averaging import WeightAverage
from chatloom.train.callbacks import Callback, LogMetrics, SaveCheckpoint
from chatloom.train.guard import LossGuard, TrainingError
from chatloom.train.optimizers import build_optimizer
from chatloom.train.parallel import StepSums, StepTotals, reduce_gradients
from chatloom.train.progress import Clock
from chatloom.train.state import Stateful, copy_tensors, load_tree, save_tree, weights_of
from chatloom.train.train_config import TrainConfig

__all__ = ["TrainConfig", "Trainer", "TrainingError"]


class Trainer:
    """Trains one module with one objective. Several may live side by side, as policy and critic do.

    Args:
        model: any module; parameters that do not require gradients stay as they are.
        objective: `(model, batch) -> Loss`.
        config: how.
        total_steps: updates in the whole run, which the schedule needs.
        run_folder: where `checkpoints/` and `metrics.jsonl` go; None keeps nothing.
        callbacks: called after each update of `run`, before logging and saving.
        device: None is where the model is.
        extra_state: what else a checkpoint holds, by name: a critic's trainer, a KL controller.
        clock: seconds, for `tokens_per_second`.

    Attributes:
        step_index: updates done so far.
        ema: the weights' exponential moving average, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        config: TrainConfig,
        *,
        total_steps: int,
        run_folder: Path | str | None = None,
        callbacks: Sequence[Callback] = (),
        device: torch.device | None = None,
        extra_state: Mapping[str, Stateful] | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        if total_steps < 1:
            raise ValueError(f"total_steps is {total_steps}; a run has at least one update: give more data or epochs")
        self.model = model if device is None else model.to(device)
        self.objective, self.config, self.total_steps, self.clock = objective, config, total_steps, clock
        self.run_folder = None if run_folder is None else Path(run_folder)
        self.callbacks = list(callbacks)
        self.extra_state: dict[str, Stateful] = dict(extra_state or {})
        _prepare(model, config)
        runtime.broadcast_parameters(model)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(model, config)
        self.device = self.parameters[0].device
        self.ema = None if config.ema_decay is None else WeightAverage(model, decay=config.ema_decay)
        self.guard = LossGuard(max_ratio=config.max_loss_ratio, patience=config.max_loss_patience)
        self.step_index = 0
        self.step_metrics: frozenset[str] = frozenset()  # names that `step` itself reported last
        self._unclaimed: dict[str, Any] = {}  # resumed state of extras that are not registered yet

    @property
    def finished(self) -> bool:
        """Whether all updates are done."""
        return self.step_index >= self.total_steps

    # --- one update -------------------------------------------------------------------------------------------

    def step(self, microbatches: Sequence[Batch], *, started: float | None = None) -> dict[str, float]:
        """Make one update from this rank's micro-batches.

        Args:
            microbatches: at least one; their losses are summed, so how they are cut does not matter.
            started: the clock when the step began, if before now (fetching the batch counts).

        Returns:
            `loss`, `grad_norm` (before clipping), `learning_rate`, `tokens` (real ones, all ranks),
            `tokens_per_second` and the objective's metrics.

        Raises:
            TrainingError: the loss or gradient is not finite, the loss explodes, or nothing counted. The weights are
                those of before the step.
        """
        started = self.clock() if started is None else started
        self.model.train()  # every part: a head's flag says nothing of the trunk that came from a folder
        sums = StepSums()
        for batch in microbatches:
            placed = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
            with runtime.autocast(self.device, self.config.dtype):
                loss = self.objective(self.model, placed)
            loss.total.backward()  # type: ignore[no-untyped-call]
            sums.add(loss, placed)
        totals = sums.reduce()
        self._check(totals)
        norm = reduce_gradients(self.parameters, weight=totals.weight, clip_norm=self.config.clip_norm)
        if not math.isfinite(norm):
            self._stop(f"the norm of the gradient is {norm}", totals)
        factor = self._schedule()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update()
        self.step_index += 1
        metrics = {
            "loss": totals.loss,
            "grad_norm": norm,
            "learning_rate": self.config.learning_rate * factor,
            "tokens": totals.tokens,
            "tokens_per_second": totals.tokens / max(self.clock() - started, 1e-9),
            **totals.metrics,
        }
        self.step_metrics = frozenset(metrics)
        return metrics

    def _schedule(self) -> float:
        factor = schedules.factor(
            self.config.schedule,
            self.step_index,
            self.total_steps,
            warmup_steps=self.config.warmup_steps,
            warmup_start=self.config.warmup_start,
            final_ratio=self.config.final_learning_rate_ratio,
            decay_fraction=self.config.decay_fraction,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        return factor

    def _check(self, totals: StepTotals) -> None:
        if totals.weight == 0:
            self._stop("nothing in the batch counts towards the loss (every target is -100)", totals)
        if not math.isfinite(totals.loss):
            self._stop(f"the loss is {totals.loss}", totals)
        if self.guard.explodes(totals.loss):
            limit = f"{self.guard.max_ratio} times its running average of {self.guard.average:.3f}"
            times = f"for {self.guard.patience} updates in a row"
            self._stop(f"the loss, {totals.loss:.3f}, has been above {limit} {times}", totals)

    def _stop(self, problem: str, totals: StepTotals) -> None:
        self.optimizer.zero_grad()
        bad = [
            f"micro-batch {index + 1} of {len(values)} on rank {rank}"
            for rank, values in enumerate(totals.microbatch_totals)
            for index, value in enumerate(values)
            if not math.isfinite(value)
        ]
        where = f", from {bad[0]}" + (f" and {len(bad) - 1} more" if bad[1:] else "") if bad else ""
        if totals.weight == 0:
            advice = "Check the data: no row has a token to learn from within the row length"
        else:
            advice = (
                "Start again from there with a lower learning_rate, a longer warm-up, a smaller clip_norm or dtype "
                "fp32, in a new folder; if the same batch fails again, look at its data"
            )
        raise TrainingError(
            f"training stopped before update {self.step_index + 1} of {self.total_steps}: {problem}{where}. "
            f"{self._last_good()}. {advice}."
        )

    def _last_good(self) -> str:
        last = None if self.run_folder is None else checkpoint.latest_checkpoint(self.run_folder)
        return "No checkpoint had been saved" if last is None else f"The last good checkpoint is kept: {last}"

    # --- a run ------------------------------------------------------------------------------------------------

    def run(self, loader: Iterable[Batch | Sequence[Batch]]) -> dict[str, float]:
        """Update until `total_steps`, from where the trainer and the loader stand; returns the last metrics.

        Args:
            loader: gives this rank's batch of each update, which `microbatch_rows` cuts, or a list of micro-batches.
                With `state_dict` and `load_state_dict` it is saved and resumed as `extra_state["loader"]`.

        Raises:
            TrainingError: see `step`; also when a checkpoint cannot be written.
            ValueError: the loader ends before `total_steps`, or cannot be resumed.
        """
        callbacks: list[Callback] = list(self.callbacks)
        if self.run_folder is not None:
            config = self.config
            logging = LogMetrics(self.run_folder, every_steps=config.log_every_steps, tensorboard=config.tensorboard)
            callbacks += [logging, SaveCheckpoint(every_steps=config.save_every_steps)]
        self._attach(loader)
        batches = iter(loader)
        metrics: dict[str, float] = {}
        try:
            while not self.finished:
                started = self.clock()
                batch = next(batches, None)
                if batch is None:
                    raise ValueError(f"the loader ended after {self.step_index} of {self.total_steps} updates")
                metrics = self.step(self._microbatches(batch), started=started)
                for callback in callbacks:
                    callback.on_step(self, metrics)
        finally:
            for callback in callbacks:
                callback.on_end(self)
        return metrics

    def _microbatches(self, batch: Batch | Sequence[Batch]) -> Sequence[Batch]:
        if not isinstance(batch, dict):
            return batch
        return [batch] if self.config.microbatch_rows is None else split_rows(batch, self.config.microbatch_rows)

    def _attach(self, loader: Any) -> None:
        if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict"):
            self.extra_state["loader"] = loader
            if "loader" in self._unclaimed:
                loader.load_state_dict(self._unclaimed.pop("loader"))
        elif self.step_index and self.run_folder is not None:
            raise ValueError(
                f"a {type(loader).__name__} cannot be resumed at update {self.step_index}; "
                "use a loader with state_dict and load_state_dict"
            )

    # --- saving and resuming ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer, average, guard and step: tensors are the live ones, not copies."""
        return {
            "step_index": self.step_index,
            "weights": weights_of(self.model),
            "optimizer": self.optimizer.state_dict(),
            "average": {} if self.ema is None else self.ema.averages,
            "guard": self.guard.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo of `state_dict`. Raises ValueError if it is of another model or another optimizer."""
        copy_tensors(state["weights"], weights_of(self.model), what="weights")
        averages = {} if self.ema is None else self.ema.averages
        copy_tensors(state["average"], averages, what="averaged weights")
        self.optimizer.load_state_dict(state["optimizer"])
        self.guard.load_state_dict(state["guard"])
        self.step_index = int(state["step_index"])

    def save(self) -> Path:
        """Write `checkpoints/step_000100`, then remove all but the newest `keep_checkpoints`. Every rank calls it.

        Raises:
            TrainingError: it could not be written, such as on a full disk; older checkpoints stay.
        """
        if self.run_folder is None:
            raise ValueError("the trainer has no run_folder, so it cannot save; give it one")
        folder = self.run_folder / "checkpoints" / f"step_{self.step_index:06d}"
        generators = runtime.gather_objects(runtime.random_state())
        problem = None
        if runtime.is_main():
            tree = {
                "trainer": self.state_dict(),
                "extra": {name: each.state_dict() for name, each in self.extra_state.items()} | self._unclaimed,
                "random": generators,
            }
            try:
                save_tree(folder, tree)
                self._prune(folder.parent)
            except OSError as error:
                problem = error
        if any(runtime.gather_objects(None if problem is None else str(problem))):
            raise TrainingError(
                f"checkpoint {folder} could not be written: {problem or 'see the first rank'}. {self._last_good()}. "
                "Free some space and give the same command again: it goes on from there"
            ) from problem
        return folder

    def _prune(self, folder: Path) -> None:
        for old in sorted(folder.glob("step_*"))[: -self.config.keep_checkpoints]:
            old.rename(folder / f".removed_{old.name}")  # so that a kill leaves no half checkpoint behind
        for hidden in folder.glob(".*"):  # that, and what a kill left of a save
            shutil.rmtree(hidden, ignore_errors=True)

    def resume(self) -> bool:
        """Go to the newest checkpoint of `run_folder`, if there is one, and say whether there was.

        Call it last, after everything that draws random numbers. A loader is put in place by `run`.

        Raises:
            ValueError: the checkpoint is of another model or optimizer, or of another number of ranks.
        """
        last = None if self.run_folder is None else checkpoint.latest_checkpoint(self.run_folder)
        if last is None:
            return False
        tree = load_tree(last)
        if len(tree["random"]) != runtime.world_size():
            raise ValueError(
                f"{last} was saved by {len(tree['random'])} ranks and cannot go on exactly on {runtime.world_size()}; "
                f"start as many again (torchrun --nproc-per-node {len(tree['random'])})"
            )
        self.load_state_dict(tree["trainer"])
        self._unclaimed = dict(tree["extra"])
        for name, each in self.extra_state.items():
            if name not in self._unclaimed:
                raise ValueError(f"{last} has no state of {name!r}; it has {', '.join(tree['extra']) or 'none'}")
            each.load_state_dict(self._unclaimed.pop(name))
        runtime.restore_random_state(tree["random"][runtime.rank()])
        return True


def _prepare(model: nn.Module, config: TrainConfig) -> None:
    """Set what the config says about the model, whatever it is wrapped in."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = config.dropout
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise ValueError(
                f"{name} is {parameter.dtype}, but trained weights are fp32 (config.dtype is that of the products): "
                'load the model with dtype="fp32", or call model.float()'
            )
    able = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    if config.gradient_checkpointing and not able:
        raise ValueError(f"{type(model).__name__} cannot recompute activations; leave gradient_checkpointing off")
    for module in able:
        module.gradient_checkpointing = config.gradient_checkpointing  # type: ignore[assignment]
    if config.dropout and not any(isinstance(module, nn.Dropout) for module in model.modules()):
        raise ValueError(f"{type(model).__name__} has no dropout layers, so dropout must be 0, not {config.dropout}")
