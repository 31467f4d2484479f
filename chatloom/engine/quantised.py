"""Linear layers whose weights are 16, 8 or 4 bits, for decoding: each step reads every matrix, so bytes are time.

* bf16: laid out once as oneDNN reads it, where it would do so in every product (half as fast for 16 rows).
* int8: a scale for each output. Activations are rounded to 8 bits too, with a scale for each row (Dettmers et al. 2022,
  LLM.int8, section 2.1: vector-wise), and the product is one of integers. It is exact, so a row's result is the same
  bit for bit whatever stands beside it and whichever operator computes it. One large input would leave few bits to the
  others of its row: what rounding left over is a second row of the product, which costs little where rows are few.
* int4: a scale and an offset for each 32 inputs of an output (the layout of GGUF's Q4_1), fitted by least squares.
  Weights alone are rounded. The operator sums each row for itself in a fixed order: again the company does not matter.
  The vocabulary's matrix stays at 8 bits.

Where answers may differ with the company (`batch_invariant=False`), more than `FEW_ROWS` rows are computed faster. int8
leaves the second rows out where the same inputs are large for every token, as behind a norm, and has their size in the
weights instead (Xiao et al. 2023, SmoothQuant). int4, whose operator is slow for many, computes in int8 from weights
rounded once more, which takes another byte a weight. With `batch_invariant` the number of rows is never looked at.

Operators: fbgemm's for int8 (x86 with VNNI), torch's own for int4 (CPU). Where one is missing, or gives other numbers
than it should, the same arithmetic is written out: dequantise and multiply.
"""

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUP = 32  # inputs that share a scale and an offset in int4; 4 + 32 / 32 = 5 bits a weight
FEW_ROWS = 4
_TILE = 16  # int4's operator computes so many outputs at a time
_FINER = 254  # half a unit of the first part is 127 of the second
_EXACT = 1024  # a sum of so many products of 8-bit integers is exact in fp32: 1024 * 127 * 127 < 2^24


class Matrix(nn.Module):
    """In place of `nn.Linear(inputs, outputs)`; `fill` turns weights into what it computes with."""

    def __init__(self, inputs: int, outputs: int, *, device: torch.device) -> None:
        super().__init__()
        self.in_features, self.out_features, self.device = inputs, outputs, device
        self.bias: Tensor | None = None

    def fill(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take on weights (outputs, inputs) and biases (outputs,) of any floating type."""
        self._pack(weight.float())
        self.bias = None if bias is None else bias.float().clone()

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs) in the type of `x`."""
        rows = x.reshape(-1, self.in_features)
        if not len(rows):  # an expert that nobody chose
            return x.new_empty(*x.shape[:-1], self.out_features)
        output = self._product(rows).view(*x.shape[:-1], self.out_features)
        if self.bias is not None:
            output = output + self.bias
        return output.to(x.dtype)

    def dequantised(self) -> Tensor:
        """The weights that it computes with, (outputs, inputs) in fp32."""
        raise NotImplementedError

    def _pack(self, weight: Tensor) -> None:
        raise NotImplementedError

    def _product(self, rows: Tensor) -> Tensor:
        raise NotImplementedError


class Half(Matrix):
    """16 bits a weight."""

    def __init__(self, inputs: int, outputs: int, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(inputs, outputs, device=device)
        self.dtype = dtype

    def fill(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take on weights and biases; the product adds the biases itself."""
        self._bias = None if bias is None else bias.to(self.dtype, copy=True)
        self._pack(weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs) in this layer's type."""
        rows = x.to(self.dtype)
        if not rows.numel():  # an expert that nobody chose
            return rows.new_empty(*x.shape[:-1], self.out_features)
        if self._packed is None:
            return F.linear(rows, self._weight, self._bias)
        output: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self._bias, "none", [], "")
        return output

    def dequantised(self) -> Tensor:
        """The weights in fp32."""
        return (self._weight if self._packed is None else self._packed.to_dense()).float()

    def _pack(self, weight: Tensor) -> None:
        own, self._packed = weight.detach().to(self.dtype), None  # the very same, if it is of the type
        if self.dtype == torch.bfloat16 and has_own_layout(self.device):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(own, None)
        else:
            self._weight = own


class Int8(Matrix):
    """8 bits a weight, a scale an output; activations in `parts` (1 or 2) of 8 bits, many rows in `parts_of_many`."""

    def __init__(
        self, inputs: int, outputs: int, *, device: torch.device, parts: int = 1, parts_of_many: int | None = None
    ) -> None:
        super().__init__(inputs, outputs, device=device)
        self.parts, self.parts_of_many = parts, parts if parts_of_many is None else parts_of_many
        self.largest: Tensor | None = None  # how large each input gets (inputs,), for `fill` to go by; None: not known

    def _pack(self, weight: Tensor) -> None:
        self._factors = None if self.largest is None else evening(self.largest, weight)
        codes, self.scales = rounded_to_int8(weight if self._factors is None else weight / self._factors)
        self._codes: Tensor | None = None
        self._packed: Any = None
        if _int8_operator(self.device.type):
            self._packed = _packed_int8(codes)
        else:
            self._codes = codes

    @property
    def codes(self) -> Tensor:
        """(outputs, inputs) int8."""
        if self._codes is not None:
            return self._codes
        weight, _ = torch.ops.quantized.linear_unpack(self._packed)
        codes: Tensor = weight.int_repr()
        return codes

    def dequantised(self) -> Tensor:
        """Codes times scales, and what its inputs are multiplied by."""
        weight = self.codes * self.scales[:, None]
        return weight if self._factors is None else weight * self._factors

    def _product(self, rows: Tensor) -> Tensor:
        if self._factors is not None:
            rows = rows * self._factors  # in fp32
        parts = self.parts if len(rows) <= FEW_ROWS else self.parts_of_many
        rounded, scale = rounded_rows(rows, parts=parts)
        if self._packed is not None:
            sums: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
                rounded, 1.0, 128, self._packed
            )
        else:
            sums = integer_product(rounded, self.codes)
        if parts > 1:
            sums = sums[: len(rows)].add_(sums[len(rows) :].mul_(1 / _FINER))  # two steps: a fused one rounds otherwise
        return sums.mul_(self.scales).mul_(scale)


class Int4(Matrix):
    """4 bits a weight, a scale and an offset a group."""

    def __init__(self, inputs: int, outputs: int, *, device: torch.device, batch_invariant: bool = True) -> None:
        super().__init__(inputs, outputs, device=device)
        self.batch_invariant = batch_invariant
        self._many: Int8 | None = None
        # What the operator takes: whole groups, whole tiles.
        self._padding = -inputs % GROUP, -outputs % _TILE

    def _pack(self, weight: Tensor) -> None:
        more_inputs, more_outputs = self._padding
        codes, self.scales = rounded_to_int4(F.pad(weight, (0, more_inputs, 0, more_outputs)))
        self._native = _int4_operator(self.device.type)
        if self._native:
            self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        else:
            self._packed = codes[:, ::2] | codes[:, 1::2] << 4
        if not self.batch_invariant:
            self._many = Int8(self.in_features, self.out_features, device=self.device, parts=2)
            self._many.fill(dequantised_int4(codes, self.scales)[: self.out_features, : self.in_features], None)

    def dequantised(self) -> Tensor:
        """(code - 8) * scale + offset; read back through the operator where it alone knows the layout."""
        outputs, inputs = self.out_features, self.in_features
        if self._native:
            unit = torch.eye(inputs + self._padding[0], dtype=torch.bfloat16)
            plain = torch.tensor([1.0, 0.0], dtype=torch.bfloat16).expand(self.scales.shape).contiguous()
            codes = torch.ops.aten._weight_int4pack_mm_for_cpu(unit, self._packed, GROUP, plain).t().float() + 8
        else:
            codes = torch.stack((self._packed & 15, self._packed >> 4), -1).flatten(1).float()
        return dequantised_int4(codes, self.scales)[:outputs, :inputs]

    def _product(self, rows: Tensor) -> Tensor:
        if self._many is not None and len(rows) > FEW_ROWS:
            return self._many._product(rows)
        if not self._native:
            with torch.autocast(rows.device.type, enabled=False):
                return F.linear(rows.to(torch.bfloat16).float(), self.dequantised())
        more_inputs, more_outputs = self._padding
        if more_inputs:
            rows = F.pad(rows, (0, more_inputs))
        output: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows.to(torch.bfloat16).contiguous(), self._packed, GROUP, self.scales
        )
        return output[:, : self.out_features] if more_outputs else output


# --- arithmetic ---------------------------------------------------------------------------------------------------


def rounded_to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (outputs, inputs) of -127 to 127 and a scale for each output."""
    scales = (weight.abs().amax(1) / 127).clamp(min=1e-30)
    return (weight / scales[:, None]).round_().to(torch.int8), scales


def evening(largest: Tensor, weight: Tensor) -> Tensor:
    """Factors (inputs,) of the inputs, and divisors of their weights (Xiao et al. 2023, eq. 4 with alpha = 1/2)."""
    ratio = weight.abs().amax(0).clamp(min=1e-5) / largest.float().clamp(min=1e-5)
    return ratio.sqrt_()


def rounded_rows(rows: Tensor, *, parts: int = 1) -> tuple[Tensor, Tensor]:
    """Each row (N, inputs) as whole numbers of -127 to 127, in fp32, and its scale (N, 1).

    Of two parts, the second half (2 N, inputs) is what rounding left over, in units of a 254th of the scale.
    """
    wide = rows.float()
    scale = torch.linalg.vector_norm(wide, float("inf"), dim=1, keepdim=True).div_(127).clamp_(min=1e-30)
    whole = wide / scale
    if parts == 1:
        return whole.round_(), scale
    rounded = whole.round()
    return torch.cat((rounded, whole.sub_(rounded).mul_(_FINER).round_())), scale


def integer_product(rounded: Tensor, codes: Tensor) -> Tensor:
    """`rounded` (N, inputs) by `codes` (outputs, inputs): exact, then rounded to fp32 once, as int32 to fp32 is."""
    parts = zip(torch.split(rounded, _EXACT, 1), torch.split(codes, _EXACT, 1))
    with torch.autocast(rounded.device.type, enabled=False):
        total: Any = sum(F.linear(some, own.float()).double() for some, own in parts)
    product: Tensor = total.float()
    return product


def rounded_to_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (outputs, inputs) of 0 to 15, uint8, and scales and offsets (groups, outputs, 2) in bf16.

    Begins with the range of each group; then codes and the line through them are fitted in turn (least squares), and
    each group keeps the best: weights that came from such codes are found again.
    """
    outputs = len(weight)
    grouped = weight.view(outputs, -1, GROUP)
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    scale = (high - low) / 15
    best = _coded(grouped, scale, low + 8 * scale)
    for _ in range(2):
        best = _better(best, _coded(grouped, *_line(grouped, best[0])))
    codes, scale, offset, _ = best
    scales = torch.cat((scale, offset), -1).transpose(0, 1).contiguous().to(torch.bfloat16)
    return (codes + 8).to(torch.uint8).view(outputs, -1), scales


def dequantised_int4(codes: Tensor, scales: Tensor) -> Tensor:
    """(code - 8) * scale + offset of codes (outputs, inputs) and scales (groups, outputs, 2), in fp32."""
    scale, offset = scales.float().transpose(0, 1)[..., None].unbind(2)  # (outputs, groups, 1)
    return ((codes.view(len(codes), -1, GROUP).float() - 8) * scale + offset).flatten(1)


_Coded = tuple[Tensor, Tensor, Tensor, Tensor]  # codes of -8 to 7, scale, offset, squared error of the group


def _coded(grouped: Tensor, scale: Tensor, offset: Tensor) -> _Coded:
    scale, offset = (each.to(torch.bfloat16).float() for each in (scale, offset))
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


# --- operators ----------------------------------------------------------------------------------------------------


def _packed_int8(codes: Tensor) -> Any:
    ones, zeros = torch.ones(len(codes), dtype=torch.float64), torch.zeros(len(codes), dtype=torch.int64)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():  # torch means to drop the type, whose one use here is to hand codes over
            warnings.simplefilter("ignore", UserWarning)
            made = torch._make_per_channel_quantized_tensor(codes.cpu(), ones, zeros, 0)
        return torch.ops.quantized.linear_prepack(made, None)
    finally:
        torch.backends.quantized.engine = before


def has_own_layout(device: torch.device) -> bool:
    """Whether oneDNN multiplies bf16 there, for which weights are laid out anew."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def stored_in(path: str, dtype: str) -> str:
    """The type of a matrix in a model of `dtype`: the vocabulary's stays at 8 bits in int4."""
    return "int8" if (path, dtype) == ("head", "int4") else dtype


def num_bytes(dtype: str, outputs: int, inputs: int) -> int:
    """What a matrix takes in "int8" or "int4"."""
    if dtype == "int8":
        return outputs * (inputs + 4)
    groups = -(-inputs // GROUP)
    return (outputs + -outputs % _TILE) * groups * (GROUP // 2 + 4)


@cache
def _int8_operator(device: str) -> bool:
    """Whether fbgemm's is there and exact: without VNNI its sums of pairs saturate at 16 bits."""
    if device != "cpu" or "fbgemm" not in torch.backends.quantized.supported_engines:
        return False
    codes = torch.full((16, 64), 127, dtype=torch.int8)
    rows = torch.full((1, 64), 127.0)
    try:
        found = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(rows, 1.0, 128, _packed_int8(codes))
    except (RuntimeError, AttributeError):
        return False
    return torch.equal(found, integer_product(rows, codes))


@cache
def _int4_operator(device: str) -> bool:
    """Whether torch's is there and computes as it is written here."""
    if device != "cpu":
        return False
    codes = torch.arange(16 * GROUP, dtype=torch.int32).view(16, GROUP) % 16
    scales = torch.tensor([0.5, -0.25], dtype=torch.bfloat16).expand(1, 16, 2).contiguous()
    rows = torch.eye(GROUP, dtype=torch.bfloat16)
    try:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        found = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, GROUP, scales)
    except (RuntimeError, AttributeError):
        return False
    return torch.equal(found.t().float(), dequantised_int4(codes, scales))
