"""Eight-bit keys and values: what is seen is attention over rounded ones, in whatever pieces; bytes are as stated."""

import random

import pytest
import torch
from torch import Tensor

from chatloom.nn import paged, quantised_cache
from chatloom.nn.cache import PLAIN, Causal, Rule
from chatloom.nn.paged import Chunk
from chatloom.nn.quantised_cache import Quantised, bytes_of_a_head, quantised


@pytest.fixture(autouse=True, params=[0, 10**6], ids=["where they lie", "copied"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged, "_FEW", request.param)
    monkeypatch.setattr(quantised_cache, "STRETCH", 0 if request.param else 1.5)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rounded(x: Tensor) -> Tensor:
    codes, scales = quantised(x)
    return codes * scales.float()[..., None]


def test_codes_by_hand() -> None:
    codes, scales = quantised(torch.tensor([[1.0, -127.0, 63.4, 0.2], [0.0, 0.0, 0.0, 0.0], [0.5, -0.25, 0.125, 0]]))
    assert scales.tolist() == [1.0, 0.0, 0.003936767578125]  # the bf16 next to 0.5 / 127
    assert codes.tolist() == [[1, -127, 63, 0], [0, 0, 0, 0], [127, -64, 32, 0]]


def test_rounding_is_off_by_half_a_step_at_most() -> None:
    x = drawn(100, 64, seed=0) * torch.logspace(-8, 8, 100)[:, None]
    steps = x.abs().amax(-1, keepdim=True) / 127
    assert float(((rounded(x) - x).abs() / steps).max()) < 0.51


@pytest.mark.parametrize("rule", [PLAIN, Rule(window=4), Rule(alibi=True), Rule(softcap=2.0, scale=0.3)], ids=str)
def test_what_is_seen_is_rounded_whatever_the_pieces(rule: Rule) -> None:
    lengths, size, chance = [30, 12, 40], 4, random.Random(0)
    rows = [[drawn(1, heads, length, 8, seed=length + heads) for heads in (4, 2, 2)] for length in lengths]
    full = [Causal().attend(1, query, rounded(key), rounded(value), rule=rule)[0] for query, key, value in rows]
    cache = Quantised(2, 2, 8, block_size=size)
    cache.make_room(60)
    numbers = chance.sample(range(60), 30)
    blocks = [[numbers.pop() for _ in range(-(-length // size))] for length in lengths]
    known = [0, 0, 0]
    for step in ([(0, 7), (2, 33)], [(0, 1), (2, 1), (1, 5)], [(0, 1), (1, 1), (2, 1)], [(1, 1), (0, 9), (2, 3)]):
        cache.begin([Chunk(blocks[row], known[row], count) for row, count in step])
        spans = [(row, slice(known[row], known[row] + count)) for row, count in step]
        query, key, value = (torch.cat([rows[row][i][:, :, span] for row, span in spans], 2) for i in range(3))
        assert cache.positions(query[:, 0, :, 0])[0].tolist() == [i for _, s in spans for i in range(s.start, s.stop)]
        cache.attend(0, query * 0, key + 1, value + 1, rule=rule)  # another layer's
        seen = cache.attend(1, query, key, value, rule=rule)[0]
        torch.testing.assert_close(seen, torch.cat([full[row][:, span] for row, span in spans], 1))
        for row, count in step:
            known[row] += count


def test_copied_put_and_cleared() -> None:
    cache = Quantised(2, 2, 8, block_size=4)
    cache.make_room(6)
    virtual = drawn(2, 2, 2, 6, 8, seed=3)  # keys and values of (L, G, P, D)
    cache.put([[5, 1], [2, 0]], *virtual)
    cache.copy([(1, 3), (3, 1)])
    own = [drawn(1, heads, 1, 8, seed=heads) for heads in (4, 2, 2)]
    for blocks in ([5, 3], [2, 0]):
        cache.begin([Chunk(blocks, 6, 1)])
        seen = cache.attend(1, *own)
        key, value = (torch.cat((rounded(virtual[i, 1])[None], rounded(own[i + 1])), 2) for i in range(2))
        expected = Causal().attend(1, torch.cat((torch.zeros(1, 4, 6, 8), own[0]), 2), key, value)[:, :, -1:]
        torch.testing.assert_close(seen, expected)
    cache.clear()
    assert not any(kept.any() for kept in (*cache._codes, *cache._scales))


def test_bytes_are_as_stated() -> None:
    """30 layers of 3 heads of 64, SmolLM2-135M's: 128K tokens are 1.45 GiB; allocated for a hundredth of them."""
    cache = Quantised(30, 3, 64, block_size=32)
    cache.make_room(41)
    assert cache.num_blocks == 41
    assert cache.num_bytes == 41 * 32 * 2 * 30 * 3 * bytes_of_a_head(64)
    assert bytes_of_a_head(64) == 66
    cache.make_room(42, most=44)
    assert cache.num_blocks == 44
    cache.make_room(10)
    assert cache.num_blocks == 44


def test_bf16_computes_with_the_rounded_numbers_too() -> None:
    """A prompt's own keys are those that decoding reads later."""
    cache = Quantised(1, 2, 8, block_size=4, dtype=torch.bfloat16)
    cache.make_room(4)
    query, key, value = (drawn(1, heads, 13, 8, seed=heads).bfloat16() for heads in (4, 2, 2))
    cache.begin([Chunk([0, 1, 2, 3], 0, 13)])
    cache.attend(0, query, key, value)
    keys, values = cache.read(0, torch.arange(4))
    for kept, given in ((keys, key), (values, value)):
        again = kept.transpose(0, 1).flatten(1, 2)[:, :13]
        assert torch.equal(again, rounded(given[0]).bfloat16())
