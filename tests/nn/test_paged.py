"""The paged cache against attention over whole rows: every rule, any order of blocks, prompts beside single tokens."""

import random

import pytest
import torch
from torch import Tensor

from chatloom.nn import paged
from chatloom.nn.cache import PLAIN, Causal, Rule
from chatloom.nn.paged import Chunk, Paged

RULES = [
    PLAIN,
    Rule(window=4),
    Rule(alibi=True),
    Rule(softcap=2.0),
    Rule(scale=0.3, window=3, softcap=1.5),
    Rule(scale=0.3, window=70, alibi=True),
]


@pytest.fixture(autouse=True, params=[0, 10**6], ids=["where they lie", "copied"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are read in two ways; both have to give the same."""
    monkeypatch.setattr(paged, "_FEW", request.param)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Rows:
    """Rows of random queries, keys and values, computed whole and then piece by piece."""

    def __init__(self, lengths: list[int], *, size: int, spread: int = 1, rule: Rule = PLAIN) -> None:
        chance = random.Random(0)
        self.tensors = [[drawn(1, heads, length, 8, seed=length + heads) for heads in (4, 2, 2)] for length in lengths]
        self.full = [Causal().attend(0, *tensors, rule=rule)[0] for tensors in self.tensors]
        counts = [-(-length // size) for length in lengths]
        numbers = chance.sample(range(spread * sum(counts)), sum(counts))
        self.blocks = [[numbers.pop() for _ in range(count)] for count in counts]
        self.cache = Paged(1, 2, 8, block_size=size)
        self.cache.make_room(spread * sum(counts))
        self.known = [0] * len(lengths)
        self.rule = rule

    def step(self, *moves: tuple[int, int]) -> None:
        """Feed (row, number of tokens), those of one token first, and compare."""
        chunks = [Chunk(self.blocks[row], self.known[row], count) for row, count in moves]
        self.cache.begin(chunks)
        spans = [(row, slice(self.known[row], self.known[row] + count)) for row, count in moves]
        query, key, value = (
            torch.cat([self.tensors[row][which][:, :, span] for row, span in spans], dim=2) for which in range(3)
        )
        positions = self.cache.positions(query[:, 0, :, 0])
        assert positions[0].tolist() == [place for _, span in spans for place in range(span.start, span.stop)]
        seen = self.cache.attend(0, query, key, value, rule=self.rule)
        expected = torch.cat([self.full[row][:, span] for row, span in spans], dim=1)
        torch.testing.assert_close(seen[0], expected)
        for row, count in moves:
            self.known[row] += count


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_decoding_sees_what_training_sees(rule: Rule) -> None:
    rows = Rows([12, 12, 30, 5], size=4, rule=rule)
    rows.step((3, 1), (0, 5), (1, 3), (2, 17))  # whole prompts, and one of a single token
    rows.step((0, 1), (3, 1), (1, 2), (2, 9))  # pieces of prompts beside decoding
    rows.step((0, 1), (1, 1), (3, 1))
    for _ in range(4):
        rows.step((1, 1), (2, 1), (0, 1))


@pytest.mark.parametrize("spread", [1, 20], ids=["side by side", "scattered"])
@pytest.mark.parametrize("size", [1, 3, 32])
def test_blocks_of_any_size_and_place(size: int, spread: int) -> None:
    rows = Rows([9, 40, 17], size=size, spread=spread)
    rows.step((0, 4), (1, 35), (2, 12))
    for _ in range(5):
        rows.step((0, 1), (1, 1), (2, 1))


def test_rows_share_blocks_and_copies_part() -> None:
    rows = Rows([10, 10], size=4)
    rows.tensors[1] = [  # the second row begins as the first: two whole blocks and half of the third
        torch.cat((one[:, :, :9], other[:, :, 9:]), dim=2) for one, other in zip(rows.tensors[0], drawn_again())
    ]
    rows.full[1] = Causal().attend(0, *rows.tensors[1])[0]
    rows.step((0, 10))
    rows.blocks[1][:2] = rows.blocks[0][:2]
    rows.cache.copy([(rows.blocks[0][2], rows.blocks[1][2])])
    rows.known[1] = 9
    rows.step((1, 1))
    rows.known = [8, 8]
    rows.step((0, 1), (1, 1))


def drawn_again() -> list[Tensor]:
    return [drawn(1, heads, 10, 8, seed=100 + heads) for heads in (4, 2, 2)]


def test_numbers_left_behind_by_others_do_not_matter() -> None:
    rows = Rows([9, 6], size=4)
    rows.cache.keys.fill_(1e4)
    rows.cache.values.fill_(-1e4)
    rows.step((0, 3), (1, 5))
    rows.step((0, 1), (1, 1))
    rows.step((0, 3))
    rows.cache.values.fill_(float("nan"))
    rows.cache.clear()
    rows.known = [0, 0]
    rows.step((1, 1), (0, 8))


def test_bf16_stays_near_fp32() -> None:
    rows = Rows([40, 33], size=8)
    rows.step((0, 39), (1, 32))
    narrow = Paged(1, 2, 8, block_size=8, dtype=torch.bfloat16)
    narrow.make_room(rows.cache.num_blocks)
    narrow.keys.copy_(rows.cache.keys)
    narrow.values.copy_(rows.cache.values)
    narrow.begin([Chunk(rows.blocks[0], 39, 1), Chunk(rows.blocks[1], 32, 1)])
    last = [torch.cat((rows.tensors[0][i][:, :, 39:], rows.tensors[1][i][:, :, 32:]), 2).bfloat16() for i in range(3)]
    expected = torch.cat((rows.full[0][:, 39:], rows.full[1][:, 32:]), 1)
    seen = narrow.attend(0, *last)[0].float()
    assert float((seen - expected).norm() / expected.norm()) < 0.02
