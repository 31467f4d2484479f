"""The scheduler with a model that is a counter: every request ends, in fair order, and no block is lost."""

import random
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from chatloom.engine import scheduler
from chatloom.engine.blocks import Blocks
from chatloom.engine.scheduler import NO_BLOCK, Plan, Scheduler, Sequence
from chatloom.nn.sinks import Kept


@dataclass
class Wish:
    """A sequence and how many tokens it goes on to have."""

    sequence: Sequence
    answer: int
    started: int | None = None  # the step in which its first token came


class World:
    """Computes plans as a model would, checking that keys and values are where they are read."""

    def __init__(
        self, num_blocks: int, size: int, *, max_rows: int, step_tokens: int, kept: Kept | None = None
    ) -> None:
        self.kept = kept
        self.scheduler = Scheduler(Blocks(num_blocks, size), max_rows=max_rows, step_tokens=step_tokens, kept=kept)
        self.size = size
        self.cells: dict[tuple[int, int], tuple[int, ...]] = {}  # (block, slot): the tokens up to this one
        self.wishes: dict[Sequence, Wish] = {}
        self.done: list[Wish] = []
        self.num_preempted = self.num_steps = self.num_computed = 0

    def add(self, prompt: list[int], answer: int, *, remember: bool = False, mark: int = 0) -> Wish:
        order = len(self.wishes) + len(self.done)
        sequence = Sequence(order, list(prompt), len(prompt), remember_answer=remember, mark=mark)
        wish = self.wishes[sequence] = Wish(sequence, answer)
        self.scheduler.add(sequence)
        return wish

    def cancel(self, wish: Wish) -> None:
        self.scheduler.remove(wish.sequence)
        del self.wishes[wish.sequence]

    def step(self) -> Plan:
        plan = self.scheduler.plan()
        assert len(plan.chunks) <= self.scheduler.max_rows
        assert sum(count for _, count in plan.chunks) <= self.scheduler.step_tokens
        assert [count > 1 for _, count in plan.chunks] == sorted(count > 1 for _, count in plan.chunks)
        self.num_preempted += plan.num_preempted
        self.num_steps += 1
        for pairs in (plan.moves, plan.copies):
            copied = {(b, slot): self.cells.get((a, slot), ()) for a, b in pairs for slot in range(self.size)}
            self.cells |= copied
        for sequence, count in plan.chunks:
            self._compute(sequence, count)
        self.scheduler.advance(plan)
        for sequence, _ in plan.chunks:
            if not sequence.num_missing:
                self._generate(sequence)
        return plan

    def _compute(self, sequence: Sequence, count: int) -> None:
        self.num_computed += count
        assert count > 0
        if self.kept is not None:
            assert sum(block != NO_BLOCK for block in sequence.blocks) <= self.kept.num_blocks(self.size)
        for place in range(sequence.num_computed + count):
            if self.kept is not None and self.kept.sinks <= place <= sequence.num_computed - self.kept.window:
                continue  # no token of this step sees it
            cell = sequence.blocks[place // self.size], place % self.size
            if place >= sequence.num_computed:
                self.cells[cell] = tuple(sequence.tokens[: place + 1])
            else:
                assert self.cells[cell] == tuple(sequence.tokens[: place + 1]), "a token sees another's past"

    def _generate(self, sequence: Sequence) -> None:
        wish = self.wishes[sequence]
        wish.started = self.num_steps if wish.started is None else wish.started
        sequence.tokens.append(len(sequence.tokens) % 3)
        if len(sequence.tokens) - sequence.num_prompt >= wish.answer:
            self.scheduler.remove(sequence)
            self.done.append(self.wishes.pop(sequence))

    def finish(self) -> None:
        while self.wishes:
            assert self.step(), "nothing is computed and something is left"
        self.scheduler.blocks.check()
        assert self.scheduler.blocks.num_held == 0


@pytest.fixture(autouse=True)
def every_mark_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_WORTH", 1)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    num_blocks=st.integers(6, 40),
    size=st.integers(1, 5),
    max_rows=st.integers(1, 8),
    more=st.integers(0, 20),
)
@example(seed=136, num_blocks=25, size=2, max_rows=1, more=8)  # a block that is to be copied was given away before
def test_every_request_ends_and_no_block_is_lost(
    seed: int, num_blocks: int, size: int, max_rows: int, more: int
) -> None:
    chance = random.Random(seed)
    world = World(num_blocks, size, max_rows=max_rows, step_tokens=max_rows + more)
    most = num_blocks * size
    for _ in range(40):
        length = chance.randint(1, most - 1)
        prompt = [chance.randrange(2) for _ in range(length)]
        mark = chance.choice((0, chance.randint(1, length)))
        world.add(prompt, chance.randint(1, min(12, most - length)), remember=chance.random() < 0.5, mark=mark)
        if chance.random() < 0.2:
            world.cancel(chance.choice(list(world.wishes.values())))
        if chance.random() < 0.05:
            world.scheduler.forget()
            world.cells = {}
            world.scheduler.restart()
        for _ in range(chance.randrange(3)):
            world.step()
        world.scheduler.blocks.check()
    world.finish()


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    window=st.integers(1, 9),
    sinks=st.integers(0, 6),
    spare=st.integers(0, 12),
    size=st.integers(1, 5),
    max_rows=st.integers(1, 5),
    more=st.integers(0, 20),
)
def test_of_endless_texts_what_is_seen_is_there_and_the_rest_is_given_back(
    seed: int, window: int, sinks: int, spare: int, size: int, max_rows: int, more: int
) -> None:
    """Texts far longer than all blocks together, found again and preempted."""
    chance, kept = random.Random(seed), Kept(window, sinks)
    world = World(kept.num_blocks(size) + spare, size, max_rows=max_rows, step_tokens=max_rows + more, kept=kept)
    texts: list[list[int]] = [[]]
    for _ in range(25):
        past = chance.choice(texts)
        prompt = past[: chance.randint(0, len(past))] + [chance.randrange(2) for _ in range(chance.randint(1, 40))]
        wish = world.add(prompt, chance.randint(1, 60), remember=chance.random() < 0.5)
        texts.append(wish.sequence.tokens)
        if chance.random() < 0.2:
            world.cancel(chance.choice(list(world.wishes.values())))
        if chance.random() < 0.05:
            world.scheduler.forget()
            world.cells = {}
            world.scheduler.restart()
        for _ in range(chance.randint(0, 30)):
            world.step()
    world.finish()


def test_ten_thousand_requests_leave_no_block_behind() -> None:
    chance = random.Random(0)
    world = World(60, 4, max_rows=16, step_tokens=64)
    world._compute = lambda sequence, count: None  # type: ignore[method-assign]
    left = 10_000
    while left or world.wishes:
        for _ in range(min(left, chance.randrange(6))):
            left -= 1
            shared = [7] * chance.choice((0, 0, 6, 20))
            world.add([*shared, *(chance.randrange(3) for _ in range(chance.randint(1, 12)))], chance.randint(1, 20))
        if world.wishes and chance.random() < 0.3:
            world.cancel(chance.choice(list(world.wishes.values())))
        world.step()
    world.scheduler.blocks.check()
    assert world.scheduler.blocks.num_held == 0
    assert world.scheduler.num_running == world.scheduler.num_waiting == 0
    assert world.num_preempted > 100


def test_first_come_first_served() -> None:
    """Distinct requests start in the order of arrival, however their lengths differ."""
    chance = random.Random(1)
    world = World(30, 4, max_rows=6, step_tokens=16)
    wishes = [world.add([i, *[9] * chance.randint(0, 60)], chance.randint(1, 20)) for i in range(60)]
    world.finish()
    starts = [wish.started for wish in wishes]
    assert starts == sorted(starts)  # type: ignore[type-var]


def test_the_oldest_is_never_stopped() -> None:
    world = World(10, 4, max_rows=8, step_tokens=64)
    wishes = [world.add([i] * 4, 30) for i in range(8)]
    steps = 0
    while wishes[0].sequence in world.wishes:
        known = len(wishes[0].sequence.tokens)
        world.step()
        steps += 1
        assert len(wishes[0].sequence.tokens) > known
    assert steps == 30
    assert world.num_preempted > 0
    world.finish()
    ends = [wish.sequence.order for wish in world.done]
    assert ends == sorted(ends)


def test_a_long_prompt_stops_nobody() -> None:
    world = World(100, 4, max_rows=4, step_tokens=10)
    short = world.add([1, 2], 30)
    world.step()
    long = world.add(list(range(200, 290)), 1)
    lengths = []
    while long.started is None:
        lengths.append(len(short.sequence.tokens))
        world.step()
    assert len(lengths) == 10  # nine tokens of the prompt a step
    assert lengths == list(range(lengths[0], lengths[0] + 10))


@pytest.mark.parametrize("length", [3, 8, 21])
def test_equal_prompts_are_computed_once(length: int) -> None:
    world = World(100, 4, max_rows=8, step_tokens=64)
    for _ in range(5):
        world.add(list(range(length)), 1)
    world.finish()
    assert world.num_steps == 2
    assert world.num_computed == length + 4


@pytest.mark.parametrize("length", [3, 6, 8, 21])
def test_a_common_beginning_that_is_marked_is_computed_once(length: int) -> None:
    world = World(100, 4, max_rows=8, step_tokens=64)
    for last in range(5):
        world.add([*range(length), 50 + last, 60, 61], 1, mark=length)
    world.finish()
    assert world.num_steps == 2
    assert world.num_computed == length + 5 * 3


def test_a_conversation_goes_on_where_it_was() -> None:
    world = World(100, 4, max_rows=8, step_tokens=64)
    first = world.add(list(range(10)), 9, remember=True)
    world.finish()
    before = world.num_computed
    world.add([*first.sequence.tokens, 5, 5], 1)
    world.finish()
    assert world.num_computed - before == 3  # the answer's last token was never fed


def test_who_waits_for_another_goes_on_when_that_one_is_cancelled() -> None:
    world = World(100, 4, max_rows=8, step_tokens=8)
    first, second, third = (world.add(prompt, 2) for prompt in (list(range(5)), list(range(5)), [5]))
    world.step()
    assert third.started is not None
    assert not second.sequence.blocks
    world.cancel(first)
    world.finish()
    assert second.started is not None


def test_sizes() -> None:
    with pytest.raises(ValueError, match="max_rows is 0"):
        Scheduler(Blocks(2, 2), max_rows=0, step_tokens=4)
    with pytest.raises(ValueError, match="step_tokens is 4; it must be at least max_rows, 5"):
        Scheduler(Blocks(2, 2), max_rows=5, step_tokens=4)
