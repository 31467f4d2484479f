"""Too many requests, and too little memory: who is refused is told so, who is under way is finished."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from chatloom.engine.capacity import out_of_memory
from chatloom.engine.engine import Engine
from chatloom.engine.request import Overloaded, SamplingParams
from chatloom.nn.paged import Paged
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

PARAMS = SamplingParams(max_tokens=12, temperature=1.0, seed=3)
PROMPTS = [[number, 5, 6, *range(number)] for number in range(1, 13)]


def engine_of(**options: Any) -> Engine:
    return Engine(tiny_llama(context_length=160), byte_tokenizer(), **options)


def no_memory_beyond(tokens: int, hidden: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def limited(given: Tensor, **options: Any) -> Tensor:
        if given.numel() > tokens:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return hidden(given, **options)

    return limited


def test_no_more_wait_than_may() -> None:
    engine = engine_of(max_batch=2, max_waiting=3)
    streams = [engine.submit([1, 2], PARAMS) for _ in range(5)]
    for ask in (engine.submit, engine.stream):
        with pytest.raises(Overloaded, match=r"5 requests wait and the engine lets 3 wait beyond the 2 .*max_waiting"):
            ask([1, 2], PARAMS)
    next(streams[0])
    with pytest.raises(Overloaded, match="3 requests wait and the engine lets 3 wait beyond the 0"):
        engine.submit([1, 2], PARAMS)
    assert len(engine.generate([[1, 2]] * 9, PARAMS)) == 9  # what one caller brings is not refused
    assert [len(stream.result().tokens) for stream in streams] == [12] * 5
    engine.submit([1, 2], PARAMS).result()
    with pytest.raises(ValueError, match="max_waiting is -1; it must be at least 0"):
        engine_of(max_waiting=-1)


def test_where_memory_runs_out_fewer_are_computed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [stream.result().tokens for stream in (engine_of().submit(p, PARAMS) for p in PROMPTS)]
    engine = engine_of(max_batch=12)
    streams = [engine.submit(prompt, PARAMS) for prompt in PROMPTS]
    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "hidden", no_memory_beyond(40, engine.model.hidden))
        engine._step()
        assert engine._scheduler.max_rows == 6
        with pytest.raises(Overloaded, match="memory has run out and 12 requests wait for it"):
            engine.submit([1], PARAMS)
        assert [stream.result().tokens for stream in streams] == expected
    assert engine._scheduler.max_rows == 12
    assert engine._scheduler.blocks.num_held == 0
    engine.submit([1], PARAMS).result()


def test_who_does_not_fit_alone_is_given_up_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of()
    hidden = engine.model.hidden

    def too_long(tokens: Tensor, **options: Any) -> Tensor:
        if int(options["cache"].positions(tokens).max()) >= 100:
            raise torch.OutOfMemoryError
        return hidden(tokens, **options)

    expected = engine.generate([[1, 2]], PARAMS)
    monkeypatch.setattr(engine.model, "hidden", too_long)
    long = engine.submit([7] * 120, PARAMS)
    short = engine.submit([1, 2], PARAMS)
    with pytest.raises(Overloaded, match="memory ran out at a request of 120 tokens, computed alone"):
        long.result()
    assert short.result().tokens == expected[0].tokens
    assert engine._scheduler.max_rows == 128
    assert engine._scheduler.blocks.num_held == 0


def test_a_cache_that_cannot_grow_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(max_batch=12)
    expected = [each.tokens for each in engine_of().generate(PROMPTS, PARAMS)]
    make_room = Paged.make_room

    def limited(self: Paged, num_blocks: int, *, most: int | None = None) -> None:
        if num_blocks > 6:
            raise MemoryError
        make_room(self, num_blocks, most=6)

    monkeypatch.setattr(Paged, "make_room", limited)
    assert [each.tokens for each in engine.generate(PROMPTS, PARAMS)] == expected
    assert engine._runner is not None
    assert engine._runner.cache.num_blocks <= 6
    engine._scheduler.blocks.check()


def test_other_errors_are_not_taken_for_it() -> None:
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("shapes do not fit"))
    assert not out_of_memory(ValueError("can't allocate memory"))
