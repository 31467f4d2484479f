"""Putting a step together again that was cut into micro-batches and ranks.

A step is one sum over everything that counts, divided once. Ranks exchange their sums, so every rank knows the
weight of the whole step and, when something went wrong, where. Gradients are summed, divided by that weight and then
clipped: clipping before the reduction would clip each rank by another norm.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from chatloom import runtime
from chatloom.objectives import Batch, Loss


@dataclass(frozen=True)
class StepTotals:
    """What a step adds up to over micro-batches and ranks."""

    weight: float
    total: float
    tokens: int
    metrics: dict[str, float]  # each already divided by its own count
    microbatch_totals: list[list[float]]  # [rank][micro-batch]

    @property
    def loss(self) -> float:
        """The mean over all that counted; NaN if nothing did."""
        return self.total / self.weight if self.weight else float("nan")


@dataclass
class StepSums:
    """Collects a rank's micro-batches on the device; nothing is read back before `reduce`."""

    totals: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    metrics: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def add(self, loss: Loss, batch: Batch) -> None:
        """Count one micro-batch. Real tokens are those of a document (`documents` != 0), or all without documents."""
        self.totals.append(loss.total.detach())
        self.weights.append(loss.weight.detach())
        if "documents" in batch:
            self.tokens.append(batch["documents"].count_nonzero())
        elif "tokens" in batch:
            self.tokens.append(loss.total.new_tensor(batch["tokens"].numel(), dtype=torch.float64))
        for name, (value, count) in loss.metrics.items():
            self.metrics.setdefault(name, []).append((value.detach(), count.detach()))

    def reduce(self) -> StepTotals:
        """Sum over micro-batches and ranks, in the order of ranks, with one read from the device."""
        pairs = [scalar for values in self.metrics.values() for pair in values for scalar in pair]
        scalars = [*self.totals, *self.weights, *self.tokens, *pairs]
        device = self.totals[0].device
        flat = torch.stack([scalar.to(device=device, dtype=torch.float64) for scalar in scalars])
        numbers = iter(flat.tolist())
        own = {
            "totals": [next(numbers) for _ in self.totals],
            "weight": sum(next(numbers) for _ in self.weights),
            "tokens": sum(next(numbers) for _ in self.tokens),
            "metrics": {},
        }
        for name, values in self.metrics.items():
            read = [(next(numbers), next(numbers)) for _ in values]
            own["metrics"][name] = (sum(value for value, _ in read), sum(count for _, count in read))
        ranks = runtime.gather_objects(own)
        names = dict.fromkeys(name for each in ranks for name in each["metrics"])
        metrics = {}
        for name in names:
            read = [each["metrics"].get(name, (0.0, 0.0)) for each in ranks]
            value, count = sum(value for value, _ in read), sum(count for _, count in read)
            metrics[name] = value / count if count else float("nan")
        return StepTotals(
            weight=sum(each["weight"] for each in ranks),
            total=sum(sum(each["totals"]) for each in ranks),
            tokens=round(sum(each["tokens"] for each in ranks)),
            metrics=metrics,
            microbatch_totals=[each["totals"] for each in ranks],
        )


def reduce_gradients(parameters: Iterable[nn.Parameter], *, weight: float, clip_norm: float | None) -> float:
    """Sum gradients over ranks, divide by `weight`, clip the whole to `clip_norm`; returns the norm before clipping.

    The division and the clipping are one multiplication. A norm that is not finite leaves the gradients undivided.
    """
    parameters = list(parameters)
    runtime.sum_gradients(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return 0.0
    norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))) / weight
    if norm != norm or norm == float("inf"):
        return norm
    clipped = 1.0 if clip_norm is None else min(1.0, clip_norm / (norm + 1e-6))
    torch._foreach_mul_(gradients, clipped / weight)
    return norm
