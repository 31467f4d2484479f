"""What `nn` differentiates by hand: against finite differences, and against the formula written down plainly."""

import pytest
import torch
from torch import Tensor

from chatloom.nn.blockwise import attend_blockwise
from chatloom.nn.cache import Causal, Packed
from chatloom.nn.norms import RMSNorm, _RMSNorm
from chatloom.nn.positions import Rotary, rotate


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def floor_of(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape, dtype=torch.float64).masked_fill_(~seen, float("-inf"))


def plain_attention(query: Tensor, key: Tensor, value: Tensor, floor: Tensor) -> Tensor:
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return (scores + floor).softmax(-1) @ value


DOCUMENTS = torch.tensor([[1] * 40 + [2] * 29 + [3] * 61 + [0] * 20, [0] * 7 + [1] * 143])


@pytest.mark.parametrize("time", [1, 5, 64, 65, 150])
@pytest.mark.parametrize("packed", [False, True])
def test_blockwise_attention_is_the_formula(time: int, packed: bool) -> None:
    documents = DOCUMENTS[:, :time] if packed else torch.ones(2, time)
    same = documents[:, None, :, None] == documents[:, None, None, :]
    floor = floor_of(same & torch.ones(time, time, dtype=torch.bool).tril())
    floor = floor if packed else floor[:1]
    tensors = [drawn(2, 3, time, 8, seed=seed) for seed in range(3)]
    gradient = drawn(2, 3, time, 8, seed=3).detach()
    found = attend_blockwise(*tensors, floor)
    expected = plain_attention(*tensors, floor)
    torch.testing.assert_close(found, expected)
    for a, b in zip(
        torch.autograd.grad(found, tensors, gradient), torch.autograd.grad(expected, tensors, gradient), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_blockwise_attention_never_reads_above_the_diagonal_block() -> None:
    floor = floor_of(torch.ones(1, 1, 128, 128, dtype=torch.bool).tril())
    tensors = [drawn(1, 2, 128, 8, seed=seed) for seed in range(3)]
    expected = attend_blockwise(*tensors, floor)
    floor[:, :, :64, 64:] = float("nan")
    assert torch.equal(attend_blockwise(*tensors, floor), expected)


@pytest.mark.parametrize("cache", [Causal(), Packed(DOCUMENTS)], ids=["causal", "packed"])
def test_bf16_attention_has_the_same_bits_with_and_without_gradients(cache: Causal | Packed) -> None:
    # PPO's ratio of a policy to itself is 1 because scoring and training run the same operations.
    query, key, value = (drawn(2, 4, 150, 16, dtype=torch.bfloat16, seed=seed) for seed in range(3))
    trained = cache.attend(0, query, key[:, :2], value[:, :2])
    with torch.no_grad():
        scored = cache.attend(0, query, key[:, :2], value[:, :2])
    assert trained.requires_grad
    assert torch.equal(trained, scored)


@pytest.mark.parametrize("cache", [Causal(), Packed(DOCUMENTS)], ids=["causal", "packed"])
def test_bf16_attention_is_near_that_of_fp32(cache: Causal | Packed) -> None:
    narrow = [drawn(2, 4, 150, 16, dtype=torch.bfloat16, seed=seed) for seed in range(3)]
    wide = [tensor.detach().float().requires_grad_() for tensor in narrow]
    gradient = drawn(2, 4, 150, 16, dtype=torch.bfloat16, seed=3).detach()
    found, expected = cache.attend(0, *narrow), cache.attend(0, *wide)
    pairs = [
        (found, expected),
        *zip(torch.autograd.grad(found, narrow, gradient), torch.autograd.grad(expected, wide, gradient.float())),
    ]
    for a, b in pairs:
        assert float((a - b).detach().norm() / b.detach().norm()) < 0.02


def test_one_cache_may_see_rows_of_another_length() -> None:
    cache = Causal()
    for time in (20, 90, 30):
        tensors = [drawn(1, 2, time, 8, dtype=torch.bfloat16, seed=seed) for seed in range(3)]
        expected = Causal().attend(0, *tensors)
        assert torch.equal(cache.attend(0, *tensors), expected)


def test_gradient_of_a_rotation() -> None:
    cosines, sines, _ = Rotary(8, 16).at(torch.tensor([[0, 1, 5, 2]]))
    x = drawn(1, 2, 4, 8)
    assert torch.autograd.gradcheck(lambda x: rotate(x, cosines.double(), sines.double()), (x,))


def test_a_rotation_keeps_lengths_and_turns_by_the_angle() -> None:
    # Two channels are one pair: position 3 turns (1, 0) by 3 radians.
    cosines, sines, _ = Rotary(2, 8).at(torch.tensor([[3]]))
    turned = rotate(torch.tensor([[[[1.0, 0.0]]]]), cosines, sines)
    torch.testing.assert_close(turned.flatten(), torch.tensor([-0.98999250, 0.14112001]))


def test_gradient_of_rms_norm() -> None:
    x, weight = drawn(2, 3, 8), drawn(8, seed=1)
    assert torch.autograd.gradcheck(lambda x, weight: _RMSNorm.apply(x, weight, 1e-5), (x, weight))


def test_rms_norm_is_that_of_torch() -> None:
    norm = RMSNorm(16, epsilon=1e-3)
    with torch.no_grad():
        norm.weight.copy_(drawn(16, seed=1))
    x = drawn(2, 3, 16, dtype=torch.float32)
    expected = torch.nn.functional.rms_norm(x, (16,), norm.weight, 1e-3)
    found = norm(x)
    torch.testing.assert_close(found, expected)
    inputs, gradient = (x, norm.weight), drawn(2, 3, 16, dtype=torch.float32, seed=2).detach()
    for a, b in zip(
        torch.autograd.grad(found, inputs, gradient), torch.autograd.grad(expected, inputs, gradient), strict=True
    ):
        torch.testing.assert_close(a, b)
    assert norm(x.bfloat16()).dtype == torch.bfloat16
