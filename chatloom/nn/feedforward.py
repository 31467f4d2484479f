"""Position-wise feed-forward layers: the two-matrix kind of GPT-2 and the gated kind of LLaMA.

`ACTIVATIONS` has the names that config files use. GPT-2's GELU is the tanh form (Hendrycks and Gimpel 2016, section 2).
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

_gelu_tanh = partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}


class FeedForward(nn.Module):
    """W2 activation(W1 x)."""

    def __init__(self, width: int, inner_width: int, *, bias: bool = True, activation: str = "gelu_new") -> None:
        super().__init__()
        self.up = nn.Linear(width, inner_width, bias=bias)
        self.down = nn.Linear(inner_width, width, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        output: Tensor = self.down(self.activation(self.up(x)))
        return output


class SwiGLU(nn.Module):
    """W_down(silu(W_gate x) * W_up x) (Shazeer 2020, eq. 5); with GELU it is his GEGLU, which Gemma has.

    A copy for decoding has gate and up `joined` in one matrix.
    """

    joined: nn.Module | None

    def __init__(self, width: int, inner_width: int, *, bias: bool = False, activation: str = "silu") -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner_width, bias=bias)
        self.up = nn.Linear(width, inner_width, bias=bias)
        self.down = nn.Linear(inner_width, width, bias=bias)
        self.register_module("joined", None)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        gate, up = (self.gate(x), self.up(x)) if self.joined is None else self.joined(x).chunk(2, -1)
        output: Tensor = self.down(self.activation(gate) * up)
        return output
