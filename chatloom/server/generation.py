"""The one bridge between asyncio and an engine's thread; all that answers goes over it.

An engine tells its news once a step, from its own thread; a `Bridge` passes that on to the event loop by one
`call_soon_threadsafe`, and there wakes the generations that have something new. So 256 streams need no thread each,
and a step costs the loop one call.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from secrets import randbits
from typing import TYPE_CHECKING, Protocol

from chatloom.engine.request import MAX_SEED, AnyEngine, Completion, Load, SamplingParams
from chatloom.server import limits, note

if TYPE_CHECKING:
    from chatloom.server.served import Served


class EngineStream(Protocol):
    """One request of an engine that computes in a thread of its own (`engine.stream.Stream`)."""

    @property
    def has_news(self) -> bool:
        """Whether `take` has something, or nothing more will come."""

    @property
    def finished(self) -> bool:
        """Whether nothing more will be computed."""

    @property
    def num_cached(self) -> int:
        """Tokens of the prompt that needed no computing."""

    def take(self) -> str:
        """The text since the last time, without waiting. Raises what went wrong with the model."""

    def so_far(self) -> Completion:
        """Tokens, log-probabilities and text as they are now; "cancelled" while it goes on."""

    def cancel(self) -> None:
        """End it now."""


class ServingEngine(AnyEngine, Protocol):
    """What serving needs of an engine."""

    max_waiting: int | None

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names that `SamplingParams.adapter` may have."""

    @property
    def load(self) -> Load:
        """How much is under way."""

    def submit(self, prompt: Sequence[int], sampling: SamplingParams = ...) -> EngineStream:
        """Let a request join those under way."""

    def start(self) -> None:
        """Compute in a thread of its own."""

    def stop(self) -> None:
        """End the thread."""

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after every step, from the computing thread; returns what ends that."""


class Generation:
    """One answer under way: an async iterator over its text, whose `completion` is there at the end."""

    def __init__(self, bridge: "Bridge", stream: EngineStream, num_prompt: int, sampling: SamplingParams) -> None:
        self._bridge, self._stream = bridge, stream
        self._news = asyncio.Event()
        self._cancelled = False
        self.num_prompt = num_prompt
        self.sampling = sampling  # with the seed that was drawn, where none was given
        self.started = time.monotonic()
        self.first_seconds: float | None = None  # from the start to the first token that was seen
        self.seconds: float | None = None  # and to the end
        self.error: Exception | None = None
        self._noted, self._meter = note.current(), limits.meter()  # of the request that asked

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        """The next piece of text. Raises what went wrong with the model; a cancelled reader cancels the request."""
        try:
            while True:
                # First: what came before the end is there when the end is seen.
                last = self._cancelled or self._stream.finished
                piece = self._stream.take()
                if piece or (last and self.seconds is None):
                    self._note(last)
                if piece:
                    return piece
                if last:
                    raise StopAsyncIteration
                self._news.clear()
                if not self._stream.has_news:
                    await self._news.wait()
        except StopAsyncIteration:
            raise
        except BaseException as error:
            self.error = error if isinstance(error, Exception) else None
            self.cancel()
            raise

    async def text(self) -> str:
        """All that is still to come."""
        return "".join([piece async for piece in self])

    @property
    def completion(self) -> Completion:
        """What there is: the whole at the end, "cancelled" before."""
        return self._stream.so_far()

    @property
    def num_cached(self) -> int:
        """Tokens of the prompt that were remembered from others."""
        return self._stream.num_cached

    def cancel(self) -> None:
        """End the request, give its memory back, and let its reader see the end; no harm where it has ended."""
        self._cancelled = True
        self._stream.cancel()
        self._note(True)
        self._news.set()

    def _note(self, ended: bool) -> None:
        now = time.monotonic() - self.started
        if self.first_seconds is None:
            self.first_seconds = now
        if ended and self.seconds is None:
            self.seconds = now
            num_tokens = len(self.completion.tokens)
            self._meter.spend(num_tokens)
            if self._noted is not None:
                self._noted.num_tokens += num_tokens
                self._noted.finish_reason = "error" if self.error else self.completion.finish_reason
                if self._noted.first_token_seconds is None:
                    self._noted.first_token_seconds = self.first_seconds
            self._bridge.end(self)

    def wake(self) -> None:
        """Let the reader look again, where there is something to see."""
        if self._stream.has_news:
            self._news.set()


class Bridge:
    """The generations of one engine, in one event loop."""

    def __init__(self, engine: ServingEngine, *, on_end: Callable[[Generation], None] | None = None) -> None:
        self.engine = engine
        self.on_end = on_end
        self._live: set[Generation] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deaf: Callable[[], None] | None = None
        self._rung = False

    @property
    def num_live(self) -> int:
        """Answers under way."""
        return len(self._live)

    def start(self) -> None:
        """Let the engine compute, and its news come to the running loop."""
        self._loop = asyncio.get_running_loop()
        self._deaf = self.engine.listen(self._ring)
        self.engine.start()

    def cancel(self) -> None:
        """Cancel what is under way; those who read it see its end."""
        for generation in tuple(self._live):
            generation.cancel()

    def stop(self) -> None:
        """Cancel what is under way and end the engine's thread."""
        self.cancel()
        if self._deaf is not None:
            self._deaf()
        self.engine.stop()
        self._loop = self._deaf = None

    async def submit(self, prompt: Sequence[int], sampling: SamplingParams) -> Generation:
        """Begin an answer. ValueError for what cannot be, Overloaded where there is no room."""
        if self._loop is None:
            raise RuntimeError("the bridge is not started")
        if sampling.grammar is None:
            stream = self.engine.submit(prompt, sampling)
        else:  # which takes a while to compile
            stream = await asyncio.to_thread(self.engine.submit, prompt, sampling)
        generation = Generation(self, stream, len(prompt), sampling)
        self._live.add(generation)
        return generation

    def end(self, generation: Generation) -> None:
        """Forget one that has ended."""
        if generation in self._live:
            self._live.discard(generation)
            if self.on_end is not None:
                self.on_end(generation)

    def _ring(self) -> None:
        """There is news: from the engine's thread."""
        loop = self._loop
        if self._rung or loop is None:
            return
        self._rung = True
        try:
            loop.call_soon_threadsafe(self._look)
        except RuntimeError:  # the loop has ended
            self._rung = False

    def _look(self) -> None:
        self._rung = False
        for generation in self._live:
            generation.wake()


async def generate(
    served: "Served", prompt: Sequence[int], sampling: SamplingParams, *, again: bool = False
) -> Generation:
    """Begin an answer of a served model.

    Args:
        served: whose adapter, if it is one, takes the place of the sampling's.
        prompt: its tokens.
        sampling: for one answer; a seed is drawn where none is given, and `Generation.sampling` has it.
        again: another answer of a prompt that counts once.

    Raises:
        ValueError: a prompt that is empty or too long, a token or grammar that there is not.
        Overloaded: as many wait as may; send it again later.
        APIError: the caller has used up their tokens.
    """
    seed = randbits(63) & MAX_SEED if sampling.seed is None else sampling.seed
    if not again:
        limits.meter().admit(len(prompt))
    if (one := note.current()) is not None:
        one.model, one.adapter = served.parent or served.name, served.adapter
        one.num_prompt_tokens += 0 if again else len(prompt)
    return await served.bridge.submit(prompt, replace(sampling, seed=seed, adapter=served.adapter))
