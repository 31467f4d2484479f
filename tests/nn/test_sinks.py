"""A window with sinks against the paper's own cache, a token at a time: unturned keys, positions within the cache."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from chatloom.nn.cache import PLAIN, Rule
from chatloom.nn.paged import Chunk
from chatloom.nn.positions import Rotary, alibi_slopes, rotate
from chatloom.nn.quantised_cache import quantised
from chatloom.nn.rope_scaling import RopeScaling
from chatloom.nn.sinks import Kept, QuantisedSinks, Sinks

WIDTH = 8
YARN = RopeScaling("yarn", 4.0, 16)
RULES = [PLAIN, Rule(softcap=2.0, scale=0.3), Rule(alibi=True), Rule(window=6), Rule(window=300)]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def streaming(query: Tensor, key: Tensor, value: Tensor, kept: Kept, rotary: Rotary | None, rule: Rule) -> Tensor:
    """StreamingLLM (section 3.2), written as it is told: (H, T, D) of unturned (H, T, D) and (G, T, D)."""
    repeats, seen = len(query) // len(key), []
    own = rule.window if rule.window is not None and rule.window <= kept.window else None
    for place in range(query.shape[1]):
        cached = [at for at in range(place + 1) if at < kept.sinks or at > place - kept.window]
        keys, values = key[:, cached], value[:, cached]  # (G, S, D)
        asks = query[:, place : place + 1]
        if rotary is not None:  # positions are those in the cache; the last is the query's
            angles = rotary.at(torch.arange(len(cached))[None])
            turned = rotate(keys[None], *angles)[0]
            last = rotary.at(torch.tensor([[len(cached) - 1]]))
            asks = rotate(asks[None], *last)[0]
        else:
            turned = keys
        scale = WIDTH**-0.5 if rule.scale is None else rule.scale
        scores = asks @ turned.repeat_interleave(repeats, 0).mT * scale  # (H, 1, S)
        if rule.softcap is not None:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        if rule.alibi:
            distance = torch.arange(len(cached) - 1, -1, -1)
            scores = scores - alibi_slopes(len(query))[:, None, None] * distance
        if own is not None:
            far = torch.tensor([place - at >= own for at in cached])
            scores = scores.masked_fill(far, float("-inf"))
        seen.append(scores.softmax(-1) @ values.repeat_interleave(repeats, 0))
    return torch.cat(seen, 1)


def rotary_of(kind: str) -> Rotary | None:
    if kind == "none":
        return None
    width = 4 if kind == "part" else WIDTH
    return Rotary(width, 32, scaling=YARN if kind == "yarn" else None, interleaved=kind == "neighbours")


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("kind", ["whole", "part", "neighbours", "yarn", "none"])
@pytest.mark.parametrize("make", [Sinks, QuantisedSinks])
def test_it_is_the_papers_cache(kind: str, rule: Rule, make: Any) -> None:
    """Texts of up to four times the length that there are tables for, in pieces, blocks given back on the way."""
    kept, size, lengths = Kept(window=13, sinks=3), 4, [128, 40, 9]
    rotary, chance = rotary_of(kind), random.Random(0)
    rows = [[drawn(heads, length, WIDTH, seed=length + heads) for heads in (4, 2, 2)] for length in lengths]
    numbers = list(range(90))
    chance.shuffle(numbers)
    blocks: list[list[int]] = [[] for _ in lengths]
    cache = make(1, 2, WIDTH, kept=kept, rotaries=[rotary], block_size=size)
    cache.make_room(90)
    got: list[list[Tensor]] = [[] for _ in lengths]
    known = [0] * len(lengths)
    while any(at < length for at, length in zip(known, lengths)):
        going = [row for row, length in enumerate(lengths) if known[row] < length]
        counts = {row: min(chance.choice((1, 1, 1, 2, 13)), lengths[row] - known[row]) for row in going}
        going.sort(key=lambda row: counts[row] > 1)
        for row in going:
            while len(blocks[row]) * size < known[row] + counts[row]:
                blocks[row].append(numbers.pop())
            for place in range(kept.num_sink_blocks(size), kept.first_block(known[row], size)):
                if blocks[row][place] >= 0:
                    numbers.insert(0, blocks[row][place])
                    blocks[row][place] = -1
            assert sum(block >= 0 for block in blocks[row]) <= kept.num_blocks(size)
        cache.begin([Chunk(blocks[row], known[row], counts[row]) for row in going])
        spans = [(row, slice(known[row], known[row] + counts[row])) for row in going]
        tensors = [torch.cat([rows[row][i][:, span] for row, span in spans], 1)[None] for i in range(3)]
        positions = cache.positions(tensors[0][:, 0, :, 0])
        if rotary is not None:  # as a model does
            angles = rotary.at(positions)
            tensors[:2] = [rotate(tensor, *angles) for tensor in tensors[:2]]
        seen = cache.attend(0, *tensors, rule=rule)[0]
        for row, part in zip(going, seen.split([counts[row] for row in going], 1)):
            got[row].append(part)
            known[row] += counts[row]
    for row, (query, key, value) in enumerate(rows):
        rough = make is QuantisedSinks
        if rough:
            codes, scales = quantised(value)
            value = codes * scales.float()[..., None]
        expected = streaming(query, key, value, kept, rotary, rule)
        atol = 0.1 if rough else 1e-5
        torch.testing.assert_close(torch.cat(got[row], 1), expected, atol=atol, rtol=1e-4)


def test_angles_do_not_run_out() -> None:
    """A million tokens on, distances are turned as at the beginning."""
    rotary = Rotary(WIDTH, 16)
    query, key = drawn(1, 1, 1, WIDTH, seed=0), drawn(1, 1, 1, WIDTH, seed=1)

    def score(at: int) -> Tensor:
        return (
            rotate(query, *rotary.turns(torch.tensor([[at + 5]]))) * rotate(key, *rotary.turns(torch.tensor([[at]])))
        ).sum()

    torch.testing.assert_close(score(10**6), score(0), atol=1e-5, rtol=0)
    for interleaved in (False, True):
        rotary = Rotary(WIDTH, 16, interleaved=interleaved)
        places = torch.arange(16)[None]
        for mine, table in zip(rotary.turns(places)[:2], rotary.at(places)[:2]):
            torch.testing.assert_close(mine, table, atol=1e-5, rtol=0)
