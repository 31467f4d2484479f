"""What both ways of asking share: the sampling of a request, its answers side by side, and what they used."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import replace
from secrets import randbits
from typing import TypeVar

from starlette.requests import Request

from chatloom.engine.grammar import Grammar
from chatloom.engine.request import MAX_SEED, SamplingParams, sample_seed
from chatloom.server import errors, note
from chatloom.server.events import gone
from chatloom.server.generation import Generation, generate
from chatloom.server.schemas import FinishReason, PromptDetails, Sampled, Usage
from chatloom.server.served import Served, ServedModels

T = TypeVar("T")
UNBOUNDED = 1_000_000  # tokens of an answer where the context has no end


class ClientGone(Exception):
    """The client left before its answer was there; nobody will read what is said to it."""


def models_of(request: Request) -> ServedModels:
    """The models of the app that serves a request."""
    models: ServedModels = request.app.state.models
    return models


def new_id(prefix: str) -> str:
    """A name for an answer, such as `chatcmpl-...`."""
    return f"{prefix}{uuid.uuid4().hex}"


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())


def sampling_of(
    body: Sampled,
    served: Served,
    *,
    max_tokens: int | None,
    stop_tokens: Sequence[int],
    top_logprobs: int = 0,
    grammar: Grammar | None = None,
) -> SamplingParams:
    """A request's parameters, OpenAI's defaults in place of what was not given. ValueError for what cannot be had."""
    if (one := note.current()) is not None:
        one.stream = bool(body.stream)
    most = min(served.context_length, UNBOUNDED)
    return SamplingParams(
        max_tokens=most if max_tokens is None else max(1, min(max_tokens, most)),
        temperature=0.0 if body.top_p == 0 else 1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k,
        top_p=body.top_p or None,
        min_p=body.min_p,
        seed=(randbits(63) if body.seed is None else body.seed) & MAX_SEED,
        stop=stops_of(body),
        stop_tokens=tuple(stop_tokens),
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
        top_logprobs=top_logprobs,
        grammar=grammar,
    )


def stops_of(body: Sampled) -> tuple[str, ...]:
    """The strings that end an answer."""
    if body.stop is None:
        return ()
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)


async def several(served: Served, prompt: Sequence[int], sampling: SamplingParams, count: int) -> list[Generation]:
    """So many answers of one prompt, each with a seed of its own; none where one cannot begin."""
    assert sampling.seed is not None
    begun: list[Generation] = []
    try:
        for sample in range(count):
            own = sampling if sample == 0 else replace(sampling, seed=sample_seed(sampling.seed, sample))
            begun.append(await generate(served, prompt, own, again=sample > 0))
    except BaseException:
        give_up(begun)
        raise
    return begun


def give_up(generations: Sequence[Generation]) -> None:
    """Cancel those that go on."""
    for generation in generations:
        generation.cancel()


async def merged(generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, str | None], None]:
    """Pieces of all, as they come, with the number of whose it is; None at its end. Closing it cancels them."""
    queue: asyncio.Queue[tuple[int, str | Exception | None]] = asyncio.Queue()

    async def pump(number: int, generation: Generation) -> None:
        try:
            async for piece in generation:
                queue.put_nowait((number, piece))
            queue.put_nowait((number, None))
        except Exception as error:
            queue.put_nowait((number, error))

    tasks = [asyncio.create_task(pump(number, each)) for number, each in enumerate(generations)]
    left = len(tasks)
    try:
        while left:
            number, piece = await queue.get()
            if isinstance(piece, Exception):
                raise piece
            left -= piece is None
            yield number, piece
    finally:
        for task in tasks:
            task.cancel()
        give_up(generations)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of some work, which is cancelled when the client goes away."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        task.cancel()
        leaving.cancel()


def reason_of(generation: Generation) -> FinishReason:
    """Why an answer ended, in OpenAI's words. APIError where the server ended it."""
    reason = generation.completion.finish_reason
    if reason == "cancelled":
        raise errors.APIError(503, "The server is shutting down; send this again later.", code="overloaded")
    return reason


def usage_of(generations: Sequence[Generation], firsts: Sequence[Generation] | None = None) -> Usage:
    """What answers used: a prompt counts once, with the first of its answers (`firsts`, or the first of all)."""
    firsts = generations[:1] if firsts is None else firsts
    read = sum(each.num_prompt for each in firsts)
    written = sum(len(each.completion.tokens) for each in generations)
    return Usage(
        prompt_tokens=read,
        completion_tokens=written,
        total_tokens=read + written,
        prompt_tokens_details=PromptDetails(cached_tokens=sum(each.num_cached for each in firsts)),
    )
