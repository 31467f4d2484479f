"""Exponential moving average of the weights (Polyak and Juditsky 1992; InstructGPT's PPO keeps one with 0.992)."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """average = decay * average + (1 - decay) * weights, after every update, from the first weights on."""

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self._weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().clone() for name, p in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in."""
        averages, weights = list(self.averages.values()), [p.detach() for p in self._weights.values()]
        torch._foreach_lerp_(averages, weights, 1 - self.decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model has the averaged weights; afterwards its own again."""
        own = {name: p.detach().clone() for name, p in self._weights.items()}
        self._copy_into_model(self.averages)
        try:
            yield
        finally:
            self._copy_into_model(own)

    def copy_to_model(self) -> None:
        """Make the averaged weights the model's own, for good: the end of a stage that keeps the average."""
        self._copy_into_model(self.averages)

    @torch.no_grad()
    def _copy_into_model(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self._weights.items():
            parameter.copy_(weights[name])
