"""Rounded matrices: near what was rounded, exact in themselves, and the same alone as in company."""

import pytest
import torch

from chatloom import runtime
from chatloom.engine import quantised
from chatloom.engine.engine import Engine
from chatloom.engine.lowered import Lowered, as_decoded
from chatloom.engine.quantised import GROUP, Half, Int4, Int8, Matrix
from chatloom.engine.request import SamplingParams
from chatloom.models import FAMILIES, build, llama
from chatloom.testing.models import tiny_config, tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

CPU = torch.device("cpu")
SHAPES = [(64, 48), (96, 17), (40, 32), (1536, 64)]  # whole groups and tiles, and not


def drawn(inputs: int, outputs: int) -> torch.Tensor:
    torch.manual_seed(inputs)
    return torch.randn(outputs, inputs) * torch.rand(outputs, 1)


def filled(matrix: Matrix, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Matrix:
    matrix.fill(weight, bias)
    return matrix


@pytest.fixture(params=["operator", "written out"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "written out":
        for name in ("_int8_operator", "_int4_operator"):
            monkeypatch.setattr(quantised, name, lambda device: False)
        monkeypatch.setattr(quantised, "has_own_layout", lambda device: False)
    return str(request.param)


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize(("kind", "off"), [(Int8, 0.01), (Int4, 0.12)])
def test_near_the_weights_and_what_it_computes_is_what_it_says(
    way: str, kind: type[Int8 | Int4], off: float, inputs: int, outputs: int
) -> None:
    weight, bias = drawn(inputs, outputs), torch.randn(outputs)
    matrix = filled(kind(inputs, outputs, device=CPU), weight, bias)
    apart = (matrix.dequantised() - weight).norm() / weight.norm()
    assert 0 < apart < off
    x = torch.randn(2, 3, inputs).to(torch.bfloat16).float()
    computed = torch.nn.functional.linear(x, matrix.dequantised(), bias)
    assert (matrix(x) - computed).norm() < 0.01 * computed.norm()
    assert matrix(x.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_the_operators_give_the_numbers_that_are_written_out(
    monkeypatch: pytest.MonkeyPatch, inputs: int, outputs: int
) -> None:
    if not (quantised._int8_operator("cpu") and quantised._int4_operator("cpu")):
        pytest.skip("this machine has no such operators")
    x = torch.randn(5, inputs).to(torch.bfloat16)
    x[0] *= 30
    weight = drawn(inputs, outputs)
    native = [filled(kind(inputs, outputs, device=CPU), weight) for kind in (Int8, Int4)]
    for name in ("_int8_operator", "_int4_operator"):
        monkeypatch.setattr(quantised, name, lambda device: False)
    written = [filled(kind(inputs, outputs, device=CPU), weight) for kind in (Int8, Int4)]
    for ours, theirs in zip(native, written):
        assert torch.equal(ours.dequantised(), theirs.dequantised())
    with torch.autocast("cpu", torch.bfloat16):  # which must not reach into the sums
        assert torch.equal(native[0](x.float()), written[0](x.float()))
        torch.testing.assert_close(native[1](x), written[1](x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", [Int8, Int4])
def test_a_row_is_the_same_alone_as_in_company(way: str, kind: type[Int8 | Int4]) -> None:
    matrix = filled(kind(64, 48, device=CPU), drawn(64, 48))
    x = torch.randn(40, 64).to(torch.bfloat16)
    x[7] *= 100  # a neighbour that would spoil a scale for all
    together = matrix(x)
    if way == "operator" or kind is Int8:
        assert all(torch.equal(matrix(x[row : row + 1])[0], together[row]) for row in range(len(x)))
    else:  # fp32 sums of another order
        torch.testing.assert_close(torch.cat([matrix(row[None]) for row in x]), together, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_second_part_holds_what_the_first_rounds_away(way: str, parts: int) -> None:
    matrix, weight = Int8(64, 48, device=CPU, parts=parts), drawn(64, 48)
    matrix.fill(weight, None)
    x = torch.randn(9, 64)
    x[:, 5] = 60  # an outlier, beside which all else is a few units
    exact = torch.nn.functional.linear(x, matrix.dequantised())
    off = float((matrix(x) - exact).norm() / exact.norm())
    assert off < 1e-4 if parts == 2 else off > 1e-3
    assert all(torch.equal(matrix(x[row : row + 1])[0], matrix(x)[row]) for row in range(len(x)))


def test_many_rows_may_have_fewer_parts() -> None:
    matrix, x = Int8(64, 48, device=CPU, parts=2, parts_of_many=1), torch.randn(quantised.FEW_ROWS + 1, 64)
    matrix.fill(drawn(64, 48), None)
    exact = torch.nn.functional.linear(x, matrix.dequantised())
    few, many = (float((matrix(rows) - exact[: len(rows)]).norm() / exact.norm()) for rows in (x[:-1], x))
    assert few < 1e-4 < 1e-3 < many < 0.03


def test_inputs_that_are_known_to_be_large_are_evened_out(way: str) -> None:
    weight, x = drawn(64, 48), torch.randn(9, 64)
    x[:, 5] *= 60
    exact = torch.nn.functional.linear(x, weight)
    off = []
    for largest in (None, x.abs().amax(0)):
        matrix = Int8(64, 48, device=CPU)
        matrix.largest = largest
        matrix.fill(weight, None)
        off.append(float((matrix(x) - exact).norm()))
        assert (matrix.dequantised() - weight).norm() < 0.03 * weight.norm()
    assert off[1] < 0.5 * off[0]


def test_a_copy_depends_on_the_weights_alone() -> None:
    source, tokens = tiny_llama(), torch.randint(0, 200, (2, 9))
    with torch.no_grad():
        source.blocks[1].attention_norm.weight[3] = 40
    seen = torch.get_rng_state()
    lowered = Lowered(source, "int8", batch_invariant=False)
    lowered.refresh()
    assert torch.equal(torch.get_rng_state(), seen)
    with torch.no_grad():
        first = lowered.model(tokens)
        source.blocks[1].attention_norm.weight[3] = 1  # a norm alone: the inputs' sizes are looked at again
        lowered.refresh()
        other = Lowered(source, "int8", batch_invariant=False)
        other.refresh()
        again, fresh = lowered.model(tokens), other.model(tokens)
    assert torch.equal(again, fresh)
    assert not torch.equal(again, first)


def test_in_company_int4_may_be_computed_in_int8() -> None:
    weight, x = drawn(64, 48), torch.randn(quantised.FEW_ROWS + 1, 64)
    same = filled(Int4(64, 48, device=CPU), weight)
    fast = filled(Int4(64, 48, device=CPU, batch_invariant=False), weight)
    few = x[:-1]
    assert torch.equal(fast(few), same(few))
    assert not torch.equal(fast(x), same(x))
    assert (fast(x) - same(x)).norm() < 0.03 * same(x).norm()


def test_weights_that_came_from_four_bits_are_found_again() -> None:
    codes = torch.randint(0, 16, (32, 8, GROUP))
    codes[..., 0], codes[..., 1] = 0, 15
    scale, offset = torch.rand(32, 8, 1).add(0.1).bfloat16().float(), torch.randn(32, 8, 1).bfloat16().float()
    weight = ((codes - 8) * scale + offset).flatten(1)
    found, scales = quantised.rounded_to_int4(weight)
    assert (quantised.dequantised_int4(found, scales) - weight).norm() < 0.005 * weight.norm()


def test_fitted_groups_are_nearer_than_their_range() -> None:
    weight = torch.randn(64, 256)
    grouped = weight.view(64, -1, GROUP)
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    plain = quantised._coded(grouped, (high - low) / 15, low + 8 * (high - low) / 15)[3].sum()
    codes, scales = quantised.rounded_to_int4(weight)
    assert (quantised.dequantised_int4(codes, scales) - weight).square().sum() < 0.95 * plain


def test_zero_rows_and_constant_groups_are_kept() -> None:
    weight = torch.zeros(32, 64)
    weight[1] = 0.5
    for kind in (Int8, Int4):
        matrix = filled(kind(64, 32, device=CPU), weight)
        assert torch.allclose(matrix.dequantised(), weight)
        assert not matrix(torch.zeros(1, 64)).any()
        assert matrix(torch.zeros(0, 64)).shape == (0, 32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_is_a_linear_layer_of_that_type(way: str, dtype: torch.dtype) -> None:
    weight, bias, x = drawn(64, 48), torch.randn(48), torch.randn(1, 5, 64)
    half = filled(Half(64, 48, device=CPU, dtype=dtype), weight, bias)
    wanted = torch.nn.functional.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))
    torch.testing.assert_close(half(x), wanted, rtol=1e-2, atol=2e-2)
    assert torch.equal(half.dequantised(), weight.to(dtype).float())


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_quantised_model_is_the_model_with_rounded_matrices(dtype: str) -> None:
    source = tiny_llama()
    lowered = Lowered(source, dtype)
    lowered.refresh()
    attention = lowered.model.blocks[0].attention
    rounded = attention.joined.dequantised().split([len(each.weight) for each in _projections(source)])
    with torch.no_grad():
        for module, weight in zip(_projections(source), rounded):
            assert (module.weight - weight).norm() < 0.2 * weight.norm()
    assert attention.query is None
    tokens = torch.randint(0, 200, (2, 9))
    with torch.inference_mode():
        ours, exact = as_decoded(source, dtype)(tokens), source(tokens)
    assert 0 < (ours - exact).norm() < 0.35 * exact.norm()
    assert as_decoded(source, "bf16") is source


def _projections(model: llama.Model) -> list[torch.nn.Linear]:
    attention = model.blocks[0].attention
    return [attention.query, attention.key, attention.value]


@pytest.mark.parametrize("dtype", ["bf16", "int8", "int4"])
def test_an_update_of_any_joined_part_reaches_the_copy(dtype: str) -> None:
    source = tiny_llama()
    lowered = Lowered(source, dtype)
    lowered.refresh()
    before = lowered.model.blocks[0].feedforward.joined.dequantised()
    with torch.no_grad():
        source.blocks[0].feedforward.up.weight.mul_(2)
    lowered.refresh()
    half = len(before) // 2
    after = lowered.model.blocks[0].feedforward.joined.dequantised()
    off = 0.01 * float(before.abs().max())  # int8 rounds anew: the factors of the inputs have changed
    torch.testing.assert_close(after[:half], before[:half], rtol=0, atol=off)
    torch.testing.assert_close(after[half:], 2 * before[half:], rtol=0, atol=2 * off)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_decoded_from_its_copy(family: str) -> None:
    torch.manual_seed(0)
    source = build(tiny_config(family)).eval()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5 * parameter.shape[-1] ** -0.5)
    tokens = torch.randint(0, 300, (2, 12))
    with torch.inference_mode():
        exact = source(tokens)
        for dtype, off in (("bf16", 0.05), ("int8", 0.1), ("int4", 0.5)):
            lowered = Lowered(source, dtype)
            lowered.refresh()
            with runtime.autocast(CPU, dtype):
                found = lowered.model(tokens)
            assert 0 < (found - exact).norm() < off * exact.norm(), dtype


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_answers_are_the_same_alone_and_in_company(dtype: str) -> None:
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [3], [9, 9, 2, 1]] * 3
    params = SamplingParams(max_tokens=12)
    engine = Engine(tiny_llama(), byte_tokenizer(), autocast=dtype)
    together = [completion.tokens for completion in engine.generate(prompts, params)]
    alone = [engine.generate([prompt], params)[0].tokens for prompt in prompts]
    assert together == alone
