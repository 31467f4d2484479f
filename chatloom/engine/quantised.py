"""Linear layers whose weights are 16, 8 or 4 bits, for decoding: each step reads every matrix, so bytes are time.

* 16: bfloat16, or whichever type the layer computes in.
* 8: a code of -127 to 127 for each weight, and a scale for each 32 inputs of an output (as in GGUF's Q8_0).
* 4: a code of 0 to 15, and a scale and an offset for each 32 inputs (as in GGUF's Q4_1), fitted by least squares. The
  vocabulary's matrix stays at 8 bits.

With 8 and 4 bits, compiled products (`native`) round the inputs too, each group of a row to 8 bits with a scale of its
own, so that its sum is exact in integers (after Dettmers et al. 2022, LLM.int8, section 2.1, which has a scale a row).
Every row is summed in the same order whatever stands beside it. Where nothing can be compiled, and on a GPU, the
rounded weights are multiplied in bfloat16, whose size they then have.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chatloom.engine import native
from chatloom.engine.native import GROUP, LANES

BITS = {"bf16": 16, "fp16": 16, "int8": 8, "int4": 4}


class Codes(NamedTuple):
    """(code - zero) * scale + offset: codes (outputs, inputs) uint8, the others (outputs, groups, 1) in fp32."""

    codes: Tensor
    zero: int
    scales: Tensor
    offsets: Tensor | None

    def weight(self) -> Tensor:
        """(outputs, inputs) in fp32."""
        whole = self.codes.view(*self.scales.shape[:2], -1).float() - self.zero
        found = whole * self.scales if self.offsets is None else whole * self.scales + self.offsets
        return found.flatten(1)


class Matrix(nn.Module):
    """In place of `nn.Linear(inputs, outputs)`; `fill` turns weights into what it computes with."""

    def __init__(
        self, inputs: int, outputs: int, *, bits: int, device: torch.device, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        """`dtype` is what 16 bits are, and what products are computed in that are not compiled."""
        super().__init__()
        self.in_features, self.out_features, self.bits, self.dtype = inputs, outputs, bits, dtype
        self.compiled = dtype == torch.bfloat16 and native.available(device)
        self.native: native.Matrix | None = None
        self.kept: tuple[Tensor, ...] = ()  # what it computes with: weights or codes, then scales, then biases

    def fill(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take on weights (outputs, inputs) and biases (outputs,) of any floating type."""
        if self.compiled:
            self._compile(native.padded(weight), bias)
            return
        if self.bits != 16:
            weight = rounded(native.padded(weight).float(), self.bits).weight()[: len(weight), : self.in_features]
        own = weight.detach().to(self.dtype)  # the very same, if it is of the type
        self.kept = (own,) if bias is None else (own, bias.to(self.dtype, copy=True))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), in 16 bits."""
        if not x.numel():  # an expert that nobody chose
            return x.new_empty(*x.shape[:-1], self.out_features)
        if self.native is None:
            return F.linear(x.to(self.dtype), *self.kept)
        output = native.product(self.native, x.reshape(-1, self.in_features))
        return output.view(*x.shape[:-1], self.out_features).to(self.dtype)

    def dequantised(self) -> Tensor:
        """The weights that it computes with, (outputs, inputs) in fp32."""
        if self.native is None:
            return self.kept[0].float()
        codes = native.read_back(self.kept[0], self.bits)
        if self.bits != 16:
            tiles, groups = len(codes) // LANES, codes.shape[1] // GROUP
            scales = self.kept[1].view(tiles, groups, -1, LANES).permute(2, 0, 3, 1).reshape(-1, len(codes), groups, 1)
            offsets = scales[1].float() if self.bits == 4 else None
            codes = Codes(codes, _ZEROS[self.bits], scales[0].float(), offsets).weight()
        return codes[: self.out_features, : self.in_features].float()

    def _compile(self, weight: Tensor, bias: Tensor | None) -> None:
        """Lay out weights (of whole tiles and groups) as compiled products read them."""
        tiles = len(weight) // LANES
        if self.bits == 16:
            kept = [native.laid_out(weight.detach().to(torch.bfloat16), 16), None]
        else:
            found = rounded(weight.float(), self.bits)
            both = [found.scales] if found.offsets is None else [found.scales, found.offsets]
            scales = torch.stack([each.view(tiles, LANES, -1).transpose(1, 2) for each in both], 2)
            kept = [native.laid_out(found.codes, self.bits), scales.to(torch.bfloat16).contiguous()]
        kept.append(None if bias is None else F.pad(bias.float(), (0, len(weight) - len(bias))).contiguous())
        pointers: list[Any] = [native.pointer(each) for each in kept]
        self.kept = tuple(each for each in kept if each is not None)
        self.native = native.Matrix(self.bits, weight.shape[1], self.out_features, tiles, *pointers)


# --- arithmetic ---------------------------------------------------------------------------------------------------

_ZEROS = {8: 128, 4: 8}


def rounded(weight: Tensor, bits: int) -> Codes:
    """Weights (outputs, inputs), whole groups of them in fp32, in 8 or 4 bits; scales and offsets are rounded to bf16.

    4 bits begin with the range of each group; then codes and the line through them are fitted in turn (least squares),
    and each group keeps the best: weights that came from such codes are found again.
    """
    grouped = weight.view(len(weight), -1, GROUP)
    if bits == 8:
        scales = _as_kept((grouped.abs().amax(-1, keepdim=True) / 127).clamp_(min=1e-30))
        codes = (grouped / scales).round_().clamp_(-127, 127)
        return Codes((codes + 128).to(torch.uint8).flatten(1), 128, scales, None)
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    scale = (high - low) / 15
    best = _coded(grouped, scale, low + 8 * scale)
    for _ in range(2):
        best = _better(best, _coded(grouped, *_line(grouped, best[0])))
    codes, scale, offset, _ = best
    return Codes((codes + 8).to(torch.uint8).flatten(1), 8, scale, offset)


def rounded_rows(rows: Tensor) -> Tensor:
    """What compiled products of 8 and 4 bits make of their inputs (N, inputs), whole groups of them, in fp32."""
    grouped = rows.float().view(len(rows), -1, GROUP)
    most = grouped.abs().amax(-1, keepdim=True)
    codes = (grouped * torch.where(most > 0, 127 / most, 0.0)).round_()
    return (codes * (most / 127)).flatten(1)


def _as_kept(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).float()


_Coded = tuple[Tensor, Tensor, Tensor, Tensor]  # codes of -8 to 7, scale, offset, squared error of the group


def _coded(grouped: Tensor, scale: Tensor, offset: Tensor) -> _Coded:
    scale, offset = _as_kept(scale), _as_kept(offset)
    apart = grouped - offset
    codes = (apart / torch.where(scale == 0, 1.0, scale)).round_().clamp_(-8, 7)
    return codes, scale, offset, (apart - codes * scale).square_().sum(-1, keepdim=True)


def _line(grouped: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and offset that come nearest to the weights with these codes."""
    mean_code, mean = codes.mean(-1, keepdim=True), grouped.mean(-1, keepdim=True)
    centred = codes - mean_code
    spread = centred.square().sum(-1, keepdim=True)
    scale = (centred * grouped).sum(-1, keepdim=True) / spread.clamp(min=1e-12)
    return scale, mean - scale * mean_code


def _better(one: _Coded, other: _Coded) -> _Coded:
    choose = other[3] < one[3]
    return tuple(torch.where(choose, theirs, own) for own, theirs in zip(one, other))  # type: ignore[return-value]


# --- sizes --------------------------------------------------------------------------------------------------------


def stored_in(path: str, dtype: str) -> str:
    """The type of a matrix in a model of `dtype`: the vocabulary's stays at 8 bits in int4."""
    return "int8" if (path, dtype) == ("head", "int4") else dtype


def num_bytes(dtype: str, outputs: int, inputs: int, device: torch.device) -> int:
    """What a matrix takes in "bf16", "int8" or "int4"."""
    if not native.available(device):
        return 2 * outputs * inputs
    bits = BITS[dtype]
    outputs, inputs = outputs + -outputs % (2 * LANES), inputs + -inputs % GROUP
    scales = {16: 0, 8: 2, 4: 4}[bits]
    return outputs * (inputs * bits // 8 + inputs // GROUP * scales)
