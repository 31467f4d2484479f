"""The bridge to the engine: many streams without a thread each, ends that give everything back, nobody held up."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from chatloom.engine.request import Overloaded, SamplingParams
from chatloom.server.generation import Bridge, generate
from chatloom.server.served import ServedModels
from chatloom.testing.serving import Running, scripted, tiny

USER = [{"role": "user", "content": "hi"}]


@asynccontextmanager
async def started(models: ServedModels) -> AsyncIterator[ServedModels]:
    models.start()
    try:
        yield models
    finally:
        models.stop()


def in_use(models: ServedModels) -> int:
    return sum(served.bridge.engine.load.blocks_in_use for served in models.values())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def test_256_streams_say_what_each_says_alone_and_need_one_thread() -> None:
    models = ServedModels({"tiny": tiny(max_batch=64, cache_tokens=8192)})
    engine = tiny().engine
    params = [SamplingParams(max_tokens=6, temperature=1.0, seed=seed) for seed in range(256)]
    prompts = [[65 + seed % 20, 66, 67 + seed % 7] for seed in range(256)]
    threads: list[str] = []

    async def run() -> list[str]:
        before = set(threading.enumerate())  # other tests' may end meanwhile
        async with started(models):
            generations = [await generate(models["tiny"], prompt, param) for prompt, param in zip(prompts, params)]
            texts = [asyncio.create_task(each.text()) for each in generations]
            await asyncio.sleep(0.05)
            threads.extend(thread.name for thread in set(threading.enumerate()) - before)
            found = await asyncio.gather(*texts)
            await until(lambda: in_use(models) == 0)
            assert models.num_live == 0
        return found

    texts = asyncio.run(run())
    assert threads == ["engine"]
    assert texts == [made.text for made in engine.generate(prompts, params)]


def test_the_loop_is_called_once_a_step_however_many_streams() -> None:
    models = ServedModels({"tiny": tiny()})

    async def run() -> int:
        calls = 0
        async with started(models):
            bridge = models["tiny"].bridge
            loop = asyncio.get_running_loop()
            plain = loop.call_soon_threadsafe

            def counted(*arguments: Any) -> Any:
                nonlocal calls
                calls += 1
                return plain(*arguments)

            loop.call_soon_threadsafe = counted  # type: ignore[method-assign,assignment]
            several = [await bridge.submit([65, 66], SamplingParams(max_tokens=20)) for _ in range(50)]
            await asyncio.gather(*(each.text() for each in several))
        return calls

    assert asyncio.run(run()) < 50  # steps of 20 tokens, and not 50 times as many


def test_cancelling_gives_the_blocks_back_and_ends_the_reader() -> None:
    models = ServedModels({"tiny": tiny()})

    async def run() -> None:
        async with started(models):
            generation = await generate(models["tiny"], [65, 66], SamplingParams(max_tokens=500))
            reader = asyncio.create_task(generation.text())
            await until(lambda: in_use(models) > 0)
            generation.cancel()
            assert (await reader) == generation.completion.text
            await until(lambda: in_use(models) == 0)
            assert generation.completion.finish_reason == "cancelled"
            assert generation.seconds is not None

    asyncio.run(run())


def test_a_reader_that_is_cancelled_cancels_its_request() -> None:
    models = ServedModels({"tiny": tiny()})

    async def run() -> None:
        async with started(models):
            generation = await generate(models["tiny"], [65, 66], SamplingParams(max_tokens=500))
            reader = asyncio.create_task(generation.text())
            await until(lambda: in_use(models) > 0)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            await until(lambda: in_use(models) == 0)

    asyncio.run(run())


def test_a_seed_is_drawn_and_told() -> None:
    models = ServedModels({"tiny": tiny()})

    async def run() -> tuple[str, str]:
        async with started(models):
            first = await generate(models["tiny"], [65], SamplingParams(max_tokens=20, temperature=1.0))
            text = await first.text()
            again = await generate(models["tiny"], [65], first.sampling)
            return text, await again.text()

    first, again = asyncio.run(run())
    assert first == again


def test_too_many_are_refused_and_told_when_to_come_again(serving: Callable[..., Running]) -> None:
    server = serving({"slow": scripted(lambda prompt: "x" * 200, pause=0.01)}, max_waiting=0)
    body = {"model": "slow", "messages": USER}
    with httpx.stream("POST", f"{server.base_url}/v1/chat/completions", json=body | {"stream": True}) as first:
        lines = first.iter_lines()  # which closes the stream when it goes
        next(lines)
        refused = httpx.post(f"{server.base_url}/v1/chat/completions", json=body)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "overloaded"
    assert int(refused.headers["Retry-After"]) >= 1


def test_n_answers_are_begun_all_or_none() -> None:
    model = tiny(max_batch=1)
    models = ServedModels({"tiny": model}, max_waiting=2)

    async def run() -> None:
        from chatloom.server import answering

        async with started(models):
            long = SamplingParams(max_tokens=300, temperature=1.0, seed=1)
            with pytest.raises(Overloaded):
                await answering.several(models["tiny"], [65], long, 9)
            await until(lambda: in_use(models) == 0)
            assert models.num_live == 0

    asyncio.run(run())


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_its_request(serving: Callable[..., Running], stream: bool) -> None:
    server = serving(tiny=tiny(context_length=16_384))
    body = {"model": "tiny", "messages": USER, "max_tokens": 16_000, "stream": stream, "logit_bias": {"6": -100}}
    body["logit_bias"] |= {str(token): -100 for token in range(16)}  # so that nothing ends it  # type: ignore[operator]
    with httpx.Client(base_url=server.base_url, timeout=30) as client:
        if stream:
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                # The first event says who speaks, and may come before anything is computed.
                next(line for line in response.iter_lines() if '"content":' in line and '"content":""' not in line)
                assert in_use(server.models) > 0
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=body, timeout=0.3)
    deadline = time.monotonic() + 10
    while in_use(server.models) or server.models.num_live:
        assert time.monotonic() < deadline, "the request of a client that has gone is computed on"
        time.sleep(0.01)


def test_a_client_that_reads_slowly_holds_up_nobody(serving: Callable[..., Running]) -> None:
    server = serving(tiny=tiny(context_length=4096))
    body = {"model": "tiny", "messages": USER, "max_tokens": 2000, "stream": True}
    with httpx.stream("POST", f"{server.base_url}/v1/chat/completions", json=body) as slow:
        lines = slow.iter_lines()
        next(lines)
        answer = server.client.chat.completions.create(model="tiny", messages=USER, max_tokens=5)  # type: ignore[arg-type]
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 5


def test_adapters_and_several_models_are_models_by_name(serving: Callable[..., Running]) -> None:
    one, two = scripted(lambda prompt: "one"), scripted(lambda prompt: "two")
    two.engine.adapters = ("formal",)  # type: ignore[attr-defined,misc]
    client = serving({"one": one, "org/two": two}).client
    cards = {card.id: card for card in client.models.list()}
    assert list(cards) == ["one", "org/two", "formal"]
    assert (cards["formal"].parent, cards["one"].parent) == ("org/two", None)  # type: ignore[attr-defined]
    assert client.models.retrieve("org/two").id == "org/two"
    for name, says in (("one", "one"), ("org/two", "two"), ("formal", "two")):
        answer = client.chat.completions.create(model=name, messages=USER)  # type: ignore[arg-type]
        assert answer.choices[0].message.content == says
    assert two.engine.sampling[-1].adapter == "formal"  # type: ignore[attr-defined]
    assert two.engine.sampling[-2].adapter is None  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("three")


def test_two_of_one_name_are_refused() -> None:
    model = scripted(lambda prompt: "")
    model.engine.adapters = ("other",)  # type: ignore[attr-defined,misc]
    with pytest.raises(ValueError, match="two models are called 'other'"):
        ServedModels({"mine": model, "other": scripted(lambda prompt: "")})
    with pytest.raises(ValueError, match="no model"):
        ServedModels({})


def test_a_bridge_that_is_not_started_says_so() -> None:
    async def run() -> None:
        engine: Any = tiny().engine
        with pytest.raises(RuntimeError, match="not started"):
            await Bridge(engine).submit([65], SamplingParams())

    asyncio.run(run())
