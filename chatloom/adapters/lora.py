"""LoRA (Hu et al. 2021, eq. 3): W x becomes W x + s B A x, with A (r, inputs) and B (outputs, r) trained.

* B starts at zero, so a fresh adapter changes nothing, bit for bit.
* DoRA (Liu et al. 2024, eq. 5) also trains m, the length of each row: m (W + s B A) / |W + s B A|. The length that is
  divided by counts as a constant in the gradient (section 4.3).
* It hangs on an `nn.Linear` as a forward hook: the layer, its name and its weight stay what they are.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class LowRank:
    """The numbers of one layer's update: A (r, inputs), B (outputs, r), s, and DoRA's m (outputs,)."""

    A: Tensor
    B: Tensor
    scale: float
    magnitude: Tensor | None = None


def fresh_down(inputs: int, rank: int, *, device: torch.device) -> nn.Linear:
    """A, drawn as its authors' code and `peft` draw it; from torch's generator."""
    down = nn.Linear(inputs, rank, bias=False, device=device, dtype=torch.float32)
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
    return down


class LoRA(nn.Module):
    """The update of one linear layer."""

    def __init__(self, linear: nn.Linear, down: nn.Linear, *, scale: float, dropout: float = 0.0, dora: bool) -> None:
        """`down` is A; layers that are stored as one matrix share theirs."""
        super().__init__()
        device = linear.weight.device
        self.A = down
        self.B = nn.Linear(down.out_features, linear.out_features, bias=False, device=device, dtype=torch.float32)
        nn.init.zeros_(self.B.weight)
        self.scale = scale
        self.dropout = dropout  # not an nn.Dropout: a trainer sets all of those to its own
        self.enabled = True
        self.unmerged: tuple[nn.Parameter] | None = None  # the layer's own weight, while a merged one is in its place
        self.handle = linear.register_forward_hook(self.hook)
        self.magnitude: nn.Parameter | None = None
        if dora:
            self.magnitude = nn.Parameter(self.lengths(linear.weight))

    @property
    def rank(self) -> int:
        """r."""
        return self.A.out_features

    @property
    def numbers(self) -> LowRank:
        """What it holds now."""
        magnitude = None if self.magnitude is None else self.magnitude.detach()
        return LowRank(self.A.weight.detach(), self.B.weight.detach(), self.scale, magnitude)

    def update(self) -> Tensor:
        """s B A: (outputs, inputs)."""
        return (self.B.weight @ self.A.weight) * self.scale

    @torch.no_grad()
    def lengths(self, weight: Tensor) -> Tensor:
        """|W + s B A| of each row: (outputs,)."""
        length: Tensor = torch.linalg.vector_norm(weight.to(self.B.weight.dtype) + self.update(), dim=1)
        return length

    @torch.no_grad()
    def merged(self, weight: Tensor) -> Tensor:
        """The weight that computes the same alone, in the dtype of `weight`; worked out in fp32."""
        wide = weight.float() + self.update().float()
        if self.magnitude is not None:
            wide = wide * (self.magnitude.float() / torch.linalg.vector_norm(wide, dim=1))[:, None]
        return wide.to(weight.dtype)

    def dormant(self, weight: Tensor) -> bool:
        """Whether it changes nothing yet."""
        fresh = not bool(self.B.weight.any())
        return fresh and (self.magnitude is None or torch.equal(self.magnitude, self.lengths(weight)))

    def hook(self, linear: nn.Linear, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Called after the layer: (..., inputs), (..., outputs) -> (..., outputs)."""
        if not self.enabled:
            return output
        x = F.dropout(inputs[0], self.dropout, self.training)
        low = self.A(x if torch.is_autocast_enabled(x.device.type) else x.to(self.A.weight.dtype))
        update: Tensor = self.B(low * self.scale)
        if self.magnitude is not None:
            share = self.magnitude / self.lengths(linear.weight)
            if self.dropout and self.training:
                own = F.linear(x, linear.weight.to(x.dtype))
            else:
                own = output if linear.bias is None else output - linear.bias
            update = (share - 1) * own + share * update
        return output + update.to(output.dtype)
