"""Rounded matrices: near what was rounded, what they say they are, and the same alone as in company."""

import pytest
import torch

from chatloom import runtime
from chatloom.engine import native, quantised
from chatloom.engine.engine import Engine
from chatloom.engine.lowered import Lowered, as_decoded
from chatloom.engine.quantised import Matrix
from chatloom.engine.request import SamplingParams
from chatloom.models import FAMILIES, build, llama
from chatloom.testing.models import tiny_config, tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

CPU = torch.device("cpu")
SHAPES = [(64, 48), (96, 17), (40, 32), (1536, 64)]  # whole groups and tiles, and not


def drawn(inputs: int, outputs: int) -> torch.Tensor:
    torch.manual_seed(inputs)
    return torch.randn(outputs, inputs) * torch.rand(outputs, 1)


def filled(bits: int, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Matrix:
    matrix = Matrix(weight.shape[1], len(weight), bits=bits, device=CPU)
    matrix.fill(weight, bias)
    return matrix


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setenv("CHATLOOM_NATIVE", "0")
    elif not native.available(CPU):
        pytest.skip("nothing can be compiled here")
    return str(request.param)


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize(("bits", "off"), [(16, 0.003), (8, 0.01), (4, 0.12)])
def test_near_the_weights_and_what_it_computes_is_what_it_says(
    way: str, bits: int, off: float, inputs: int, outputs: int
) -> None:
    weight, bias = drawn(inputs, outputs), torch.randn(outputs)
    matrix = filled(bits, weight, bias)
    assert matrix.compiled == (way == "compiled")
    apart = (matrix.dequantised() - weight).norm() / weight.norm()
    assert 0 < apart < off
    x = torch.randn(2, 3, inputs).to(torch.bfloat16).float()
    computed = torch.nn.functional.linear(x, matrix.dequantised(), bias)
    assert matrix(x).shape == (2, 3, outputs)
    assert (matrix(x) - computed).norm() < 0.01 * computed.norm()


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_compiled_products_give_the_numbers_that_are_written_out(bits: int, inputs: int, outputs: int) -> None:
    if not native.available(CPU):
        pytest.skip("nothing can be compiled here")
    weight, bias, x = drawn(inputs, outputs), torch.randn(outputs), torch.randn(25, inputs)
    x[3] *= 30
    x[4] = 0
    matrix = filled(bits, weight, bias)
    assert matrix.native is not None
    wide = native.padded(x)[: len(x)]
    read = wide.to(torch.bfloat16).float() if bits == 16 else quantised.rounded_rows(wide)
    wanted = read[:, :inputs].double() @ matrix.dequantised().double().t() + bias
    torch.testing.assert_close(native.product(matrix.native, x).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_are_rounded_alike_whoever_multiplies(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    weight = drawn(96, 40)
    found = filled(bits, weight).dequantised()
    assert torch.equal(found, quantised.rounded(native.padded(weight), bits).weight()[:40, :96])
    monkeypatch.setenv("CHATLOOM_NATIVE", "0")
    torch.testing.assert_close(filled(bits, weight).dequantised(), found, rtol=2**-8, atol=0)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_row_is_the_same_alone_as_in_company(bits: int) -> None:
    if not native.available(CPU):
        pytest.skip("nothing can be compiled here")
    matrix = filled(bits, drawn(64, 80))
    x = torch.randn(200, 64)
    x[7] *= 100  # a neighbour that would spoil a scale for all
    together = matrix(x)
    assert all(torch.equal(matrix(x[row : row + 1])[0], together[row]) for row in range(len(x)))
    assert torch.equal(matrix(x[:31]), together[:31])


def test_weights_that_came_from_four_bits_are_found_again() -> None:
    codes = torch.randint(0, 16, (32, 8, 32))
    codes[..., 0], codes[..., 1] = 0, 15
    scale, offset = torch.rand(32, 8, 1).add(0.1).bfloat16().float(), torch.randn(32, 8, 1).bfloat16().float()
    weight = ((codes - 8) * scale + offset).flatten(1)
    assert (quantised.rounded(weight, 4).weight() - weight).norm() < 0.005 * weight.norm()


def test_fitted_groups_are_nearer_than_their_range() -> None:
    weight = torch.randn(64, 256)
    grouped = weight.view(64, -1, 32)
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    plain = quantised._coded(grouped, (high - low) / 15, low + 8 * (high - low) / 15)[3].sum()
    assert (quantised.rounded(weight, 4).weight() - weight).square().sum() < 0.95 * plain


def test_zero_rows_and_constant_groups_are_kept(way: str) -> None:
    weight = torch.zeros(32, 64)
    weight[1] = 0.5
    for bits in (16, 8, 4):
        matrix = filled(bits, weight)
        torch.testing.assert_close(matrix.dequantised(), weight, rtol=2**-8, atol=0)
        assert not matrix(torch.zeros(1, 64)).any()
        assert matrix(torch.zeros(0, 64)).shape == (0, 32)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_what_is_not_a_number_stays_none(bits: int) -> None:
    x = torch.randn(3, 64)
    x[1, 5] = float("nan")
    x[2, 40] = float("inf")
    found = filled(bits, drawn(64, 48))(x)
    assert found[0].isfinite().all()
    assert not found[1:].isfinite().any()


def test_sixteen_bits_may_be_another_type() -> None:
    weight, bias, x = drawn(64, 48), torch.randn(48), torch.randn(1, 5, 64)
    half = Matrix(64, 48, bits=16, dtype=torch.float16, device=CPU)
    half.fill(weight, bias)
    wanted = torch.nn.functional.linear(x.half(), weight.half(), bias.half())
    torch.testing.assert_close(half(x), wanted, rtol=1e-2, atol=2e-2)
    assert torch.equal(half.dequantised(), weight.half().float())


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_quantised_model_is_the_model_with_rounded_matrices(way: str, dtype: str) -> None:
    source = tiny_llama()
    lowered = Lowered(source, dtype)
    lowered.refresh()
    attention = lowered.model.blocks[0].attention
    rounded = attention.joined.dequantised().split([len(each.weight) for each in _projections(source)])
    with torch.no_grad():
        for module, weight in zip(_projections(source), rounded):
            assert (module.weight - weight).norm() < 0.2 * weight.norm()
    assert attention.query is None
    assert lowered.model.head.bits == 8
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
    torch.testing.assert_close(after[:half], before[:half], rtol=0, atol=0)
    torch.testing.assert_close(after[half:], 2 * before[half:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_decoded_from_its_copy(way: str, family: str) -> None:
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
