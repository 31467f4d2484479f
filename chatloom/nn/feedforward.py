"""Position-wise feed-forward layers: the two-matrix kind of GPT-2 and the gated kind of LLaMA."""

from torch import Tensor, nn
from torch.nn import functional as F


class GeluFeedForward(nn.Module):
    """W2 gelu(W1 x), with GPT-2's tanh form of GELU (Hendrycks and Gimpel 2016, section 2)."""

    def __init__(self, width: int, inner_width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner_width, bias=bias)
        self.down = nn.Linear(inner_width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        output: Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))
        return output


class SwiGLU(nn.Module):
    """W_down(silu(W_gate x) * W_up x) (Shazeer 2020, eq. 5)."""

    def __init__(self, width: int, inner_width: int, *, bias: bool = False) -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner_width, bias=bias)
        self.up = nn.Linear(width, inner_width, bias=bias)
        self.down = nn.Linear(inner_width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        output: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return output
