"""What is minimised: pure functions of a model and a batch, one file an algorithm. They import torch alone.

An objective returns *sums* and the counts they are to be divided by, never means. The trainer adds both up over
micro-batches and ranks and divides once, so the loss cannot depend on how a batch was cut: the mean of means that
made gradient accumulation wrong elsewhere cannot be written down here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Loss:
    """What an objective returns.

    Attributes:
        total: scalar with a gradient, the **sum** of the losses of all that counts (tokens, actions, prompts).
        weight: scalar, how many there were; the trainer divides the total of a step by the weight of the step.
        metrics: name -> (sum, count), scalars without gradient, each divided by its own count after reduction.
    """

    total: Tensor
    weight: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


Objective = Callable[[Any, Batch], Loss]
