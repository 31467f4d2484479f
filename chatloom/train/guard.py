"""Stops a run that has gone wrong, before the update that would spoil the weights.

A loss that is not finite stops at once. A loss that explodes is seen against its running average: one bad batch is
no reason to stop, several in a row are. While the loss is above the limit no checkpoint is written either, so the
last checkpoint is one of the healthy run.
"""

from typing import Any

_MEMORY = 0.98  # of the running average: about the last fifty healthy updates
_LEAST_AVERAGE = 1.0  # nats; a model that knows its data by heart may double a tiny loss without harm


class TrainingError(ValueError):
    """Training cannot go on; says at which step, on which batch, what is kept and what to do."""


class LossGuard:
    """Watches the loss of each step; `max_ratio` None never calls a finite loss exploding."""

    def __init__(self, *, max_ratio: float | None, patience: int) -> None:
        self.max_ratio, self.patience = max_ratio, patience
        self.average: float | None = None
        self.num_high = 0

    @property
    def healthy(self) -> bool:
        """Whether the last loss was within the limit."""
        return self.num_high == 0

    def explodes(self, loss: float) -> bool:
        """Take a loss in; True when it and those before it, `patience` in a row, are above the limit."""
        if self.max_ratio is None:
            return False
        if self.average is None:
            self.average = loss
        if loss > self.max_ratio * max(self.average, _LEAST_AVERAGE):
            self.num_high += 1
            return self.num_high >= self.patience
        self.num_high = 0
        self.average = _MEMORY * self.average + (1 - _MEMORY) * loss
        return False

    def state_dict(self) -> dict[str, Any]:
        """The average and the count."""
        return {"average": self.average, "num_high": self.num_high}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo of `state_dict`."""
        self.average, self.num_high = state["average"], state["num_high"]
