"""Blocks against a slow oracle that remembers everything, and every rule that keeps them apart."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.engine.blocks import Blocks, name_of

ROOT = b"root"


def filled(blocks: Blocks, tokens: list[int]) -> list[int]:
    """A row of new blocks that hold the tokens, all of them named."""
    row, parent, size = [], ROOT, blocks.block_size
    for start in range(0, len(tokens), size):
        block = blocks.take()
        assert block is not None
        row.append(block)
        parent = blocks.name(block, parent, tokens[start : start + size])
    return row


def test_a_name_stands_for_all_that_came_before() -> None:
    assert name_of(name_of(ROOT, [1, 2]), [3]) == name_of(name_of(ROOT, [1, 2]), (3,))
    assert len({name_of(ROOT, [1, 2]), name_of(ROOT, [2, 1]), name_of(b"other", [1, 2]), name_of(ROOT, [1])}) == 4


def test_whole_blocks_are_shared_and_the_rest_is_copied() -> None:
    blocks = Blocks(8, 4)
    row = filled(blocks, list(range(10)))
    assert row == [0, 1, 2]
    found = blocks.match(ROOT, [*range(10), 77])
    assert (found.blocks, found.num_tokens, found.copied) == ([0, 1], 10, 2)
    # The last token is always computed: its logits are needed.
    found = blocks.match(ROOT, list(range(10)))
    assert (found.blocks, found.num_tokens, found.copied) == ([0, 1], 9, 2)
    found = blocks.match(ROOT, list(range(8)))
    assert (found.blocks, found.num_tokens, found.copied) == ([0], 7, 1)
    found = blocks.match(ROOT, [0, 1, 2, 3, 4, 99, 6])
    assert (found.blocks, found.num_tokens, found.copied) == ([0], 4, None)
    assert blocks.match(b"other", list(range(10))).num_tokens == 0


def test_what_nobody_reads_is_remembered_until_its_place_is_needed() -> None:
    blocks = Blocks(4, 2)
    old, new = filled(blocks, [1, 2, 3]), filled(blocks, [5, 6])
    for block in (*reversed(old), *new):
        blocks.drop(block)
    assert blocks.num_available == 4
    assert blocks.match(ROOT, [1, 2, 3, 4]).num_tokens == 3
    assert [blocks.take() is not None for _ in range(2)] == [True, True]
    # The end of the row was forgotten first, its beginning next; the newest is still there.
    assert blocks.match(ROOT, [1, 2, 3, 4]).num_tokens < 3
    assert blocks.match(ROOT, [5, 6, 7]).num_tokens == 2
    assert [blocks.take() is not None for _ in range(3)] == [True, True, False]
    blocks.check()


def test_a_remembered_block_moves_out_of_the_way() -> None:
    blocks = Blocks(400, 2)
    old = [filled(blocks, [8, number])[0] for number in range(60)]
    for block in old:
        blocks.drop(block)
    taken = [blocks.take() for _ in range(10)]
    assert sorted(taken) == old[:10]  # type: ignore[type-var]
    for number in range(60):
        (found,) = blocks.match(ROOT, [8, number, 1]).blocks
        assert found not in taken
        assert blocks.moves.get(found, found) == old[number]
    blocks.check()


def test_forgetting_leaves_readers_their_blocks() -> None:
    blocks = Blocks(6, 2)
    held, unread = filled(blocks, [1, 2, 3, 4]), filled(blocks, [5, 6])
    blocks.drop(unread[0])
    blocks.forget()
    assert blocks.match(ROOT, [1, 2, 3, 4, 5]).num_tokens == 0
    assert (blocks.num_held, blocks.num_available) == (2, 4)
    for block in held:
        blocks.drop(block)
    blocks.check()
    assert blocks.num_available == 6


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(1, 4))
def test_what_is_found_is_what_was_written(seed: int, num_blocks: int, size: int) -> None:
    """Contents are simulated: a block found under a name holds the tokens of the name, moved or not."""
    chance = random.Random(seed)
    blocks = Blocks(num_blocks, size)
    contents: dict[int, list[int]] = {}
    rows: list[list[int]] = []
    for _ in range(60):
        if rows and chance.random() < 0.4:
            for block in reversed(rows.pop(chance.randrange(len(rows)))):
                blocks.drop(block)
            continue
        if chance.random() < 0.03:
            blocks.forget()
        tokens = [chance.randrange(2) for _ in range(chance.randint(1, 4 * size))]
        found = blocks.match(ROOT, tokens)
        held = [contents[block] for block in found.blocks]
        partial = contents[found.copied] if found.copied is not None else []
        assert [token for block in held for token in block] == tokens[: len(held) * size]
        assert partial[: found.num_tokens - len(held) * size] == tokens[len(held) * size : found.num_tokens]
        assert found.num_tokens < len(tokens)
        row = list(found.blocks)
        for block in row:
            blocks.hold(block)
        parent = found.name
        for start in range(len(row) * size, len(tokens), size):
            block = blocks.take()
            contents |= {target: contents[origin] for target, origin in blocks.moves.items()}
            blocks.moves.clear()
            if block is None:
                break
            contents[block] = tokens[start : start + size]
            parent = blocks.name(block, parent, contents[block])
            row.append(block)
        rows.append(row)
        blocks.check()
    for row in rows:
        for block in row:
            blocks.drop(block)
    blocks.check()
    assert blocks.num_available == num_blocks


def test_sizes() -> None:
    with pytest.raises(ValueError, match="0 blocks of 4 tokens"):
        Blocks(0, 4)
