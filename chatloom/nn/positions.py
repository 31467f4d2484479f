"""Where a token stands. Learned positions are an `nn.Embedding`; rotary positions and ALiBi's slopes are here.

Rotary embedding (Su et al. 2021, section 3.4): channel pairs of queries and keys are turned by an angle
proportional to the position, so that their product depends on the distance alone. Pairs are (i, i + D/2), the
layout of the LLaMA checkpoints, or the paper's neighbours (2i, 2i + 1). Some families turn only the first channels.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chatloom.nn.rope_scaling import RopeScaling


class Angles(NamedTuple):
    """Cosines and signed sines of some positions, each (B, 1, T, D); with `interleaved` pairs are neighbours."""

    cosines: Tensor
    sines: Tensor
    interleaved: bool = False


class Rotary(nn.Module):
    """Tables of cosines and sines, made once for the context length and read by position."""

    cosines: Tensor
    sines: Tensor

    def __init__(
        self,
        width: int,
        context_length: int,
        *,
        theta: float = 10_000.0,
        scaling: RopeScaling | None = None,
        interleaved: bool = False,
    ) -> None:
        """`width` is the number of channels of a head that are turned, the first ones."""
        super().__init__()
        if width % 2 or width < 2:
            raise ValueError(
                f"rotary positions turn pairs of channels; {width} channels of a head is not an even number"
            )
        self.interleaved = interleaved
        frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
        magnitude = 1.0
        if scaling is not None:
            frequencies, magnitude = scaling.scaled(frequencies, theta=theta, context_length=context_length)
        self.frequencies = frequencies  # no buffer: it stays fp32, whatever the model becomes
        angles = torch.arange(context_length, dtype=torch.float32)[:, None] * frequencies  # (T, D/2)
        # One channel of each pair is turned the other way, so the sign sits in the table.
        sign = torch.tensor([-magnitude, magnitude])
        if interleaved:
            angles, sign = angles.repeat_interleave(2, dim=-1), sign.repeat(width // 2)
        else:
            angles, sign = torch.cat((angles, angles), dim=-1), sign.repeat_interleave(width // 2)
        self.register_buffer("cosines", angles.cos() * magnitude, persistent=False)
        self.register_buffer("sines", angles.sin() * sign, persistent=False)

    def at(self, positions: Tensor) -> Angles:
        """The tables at `positions` (B, T)."""
        cosines, sines = (table[positions].unsqueeze(1) for table in (self.cosines, self.sines))
        device = positions.device.type
        if torch.is_autocast_enabled(device):  # what they turn comes from a matrix: cast once for all layers
            cosines, sines = (table.to(torch.get_autocast_dtype(device)) for table in (cosines, sines))
        return Angles(cosines, sines, self.interleaved)

    def turns(self, positions: Tensor) -> Angles:
        """Turns alone, without the tables' magnitude, by the angles of any `positions` (B, T), also beyond them."""
        angles = (positions[..., None].double() * self.frequencies.to(positions.device)).unsqueeze(1)  # (B, 1, T, D/2)
        cosines, sines = angles.cos().float(), angles.sin().float()
        if self.interleaved:
            signs = torch.tensor([-1.0, 1.0], device=positions.device).repeat(angles.shape[-1])
            cosines, sines = (table.repeat_interleave(2, dim=-1) for table in (cosines, sines))
            return Angles(cosines, sines * signs, interleaved=True)
        return Angles(torch.cat((cosines, cosines), -1), torch.cat((-sines, sines), -1))


def rotate(x: Tensor, cosines: Tensor, sines: Tensor, interleaved: bool = False) -> Tensor:
    """Turn the channel pairs of `x` (B, H, T, D), in the dtype of `x`, by `Angles`; channels beyond them stay."""
    width = cosines.shape[-1]
    whole = width == x.shape[-1]
    some = x if whole else x[..., :width]
    if torch.is_grad_enabled():
        turned: Tensor = _Rotation.apply(some, cosines, sines, interleaved)  # type: ignore[no-untyped-call]
    else:
        turned = _turn(some, cosines.to(x.dtype), sines.to(x.dtype), interleaved)
    return turned if whole else torch.cat((turned, x[..., width:]), dim=-1)


def _turn(x: Tensor, cosines: Tensor, sines: Tensor, interleaved: bool) -> Tensor:
    if interleaved:
        swapped = torch.unflatten(x, -1, (-1, 2)).flip(-1).flatten(-2)
    else:
        half = x.shape[-1] // 2
        swapped = torch.cat((x[..., half:], x[..., :half]), dim=-1)
    return torch.addcmul(x * cosines, swapped, sines)


class _Rotation(torch.autograd.Function):
    """The gradient of a rotation is the rotation back: one turn, where autograd would take the halves apart again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor, interleaved: bool) -> Tensor:
        cosines, sines = cosines.to(x.dtype), sines.to(x.dtype)
        ctx.save_for_backward(cosines, sines)
        ctx.interleaved = interleaved
        return _turn(x, cosines, sines, interleaved)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        cosines, sines = ctx.saved_tensors
        return _turn(gradient, cosines, -sines, ctx.interleaved), None, None, None


def alibi_slopes(num_heads: int) -> Tensor:
    """What each head takes off a score for one token of distance (Press et al. 2022, section 3). (H,) float32.

    For a power of two they are 2^(-8/H), 2^(-16/H), ...; other counts take every second one of the next power too.
    """
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    slopes += [2 ** (-4 * (2 * head + 1) / power) for head in range(num_heads - power)]
    return torch.tensor(slopes, dtype=torch.float32)
