"""Answers of the page while they are written: tasks of the server, so that a reload of the page loses nothing.

An answer is in the store from its first moment, with the exact tokens of its prompt; every few seconds what there is so
far is stored too, and at the end the finished record. Whoever looks is told of changes and draws them again from the
beginning (`events`), be it the first to look or one that comes back.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from secrets import randbits
from typing import Any

from chatloom.chat.message import Message as Turn
from chatloom.engine.request import MAX_SEED, SamplingParams, sample_seed
from chatloom.feedback.records import Conversation, Made, Message, answers_of
from chatloom.feedback.store import Store
from chatloom.server import errors
from chatloom.server.events import event
from chatloom.server.generation import Generation, generate
from chatloom.server.markdown import render_blocks
from chatloom.server.served import Served, ServedModels

DRAW_SECONDS = 0.06  # between two drawings of a growing answer, at least; drawing takes a ninth of the time at most
STORE_SECONDS = 2.0  # between two writes of it
ABANDONED_SECONDS = 30.0  # after which an answer that no server adds to has been left by one that is gone
SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(eq=False)
class Running:
    """One answer under way."""

    message: Message
    served: Served
    made: Made
    generation: Generation
    text: str  # so far; of an answer that is continued, from its beginning
    first: list[int]  # the tokens that were there before
    watchers: set[asyncio.Event] = field(default_factory=set)
    task: asyncio.Task[None] | None = None
    stored: float = field(default_factory=time.monotonic)
    drawn: tuple[str, list[str]] = ("", [])

    def tell(self) -> None:
        """Whoever looks at it."""
        for watcher in self.watchers:
            watcher.set()

    @property
    def tokens(self) -> list[int]:
        """All of the answer so far."""
        return self.first + self.generation.completion.tokens

    def figures(self) -> dict[str, Any]:
        """How fast it comes, and how full the context is."""
        own = len(self.generation.completion.tokens)
        began = self.generation.started + (self.generation.first_seconds or 0.0)
        seconds = time.monotonic() - began
        return {
            "tokens_per_second": round((own - 1) / seconds, 1) if own > 4 and seconds > 0.2 else None,
            "context_used": len(self.made.prompt_tokens) + len(self.first) + own,
            "context": shown_context(self.served),
        }

    async def blocks(self) -> list[str]:
        """What there is, as safe HTML; drawn once for all who look."""
        text, blocks = self.drawn
        if text != self.text:
            text = self.text
            blocks = await asyncio.to_thread(render_blocks, text)
            self.drawn = (text, blocks)
        return blocks


class Answers:
    """All answers of the page that are under way in this process."""

    def __init__(self, store: Store, models: ServedModels, view: Callable[[Message], dict[str, Any]]) -> None:
        """`view` makes of a finished message what the page is told of it."""
        self.store, self.models, self._view = store, models, view
        self.problems: dict[str, str] = {}  # why answers failed
        self._running: dict[str, Running] = {}
        self._starting: set[str] = set()  # answers that are about to be continued

    def get(self, id: str) -> Running | None:
        """An answer under way in this process."""
        return self._running.get(id)

    async def begin(
        self, conversation: Conversation, question: Message, chosen: Sequence[Served], sampling: SamplingParams
    ) -> list[Message]:
        """One answer of each of these models, which may be the same several times; each has a seed of its own."""
        path = await asyncio.to_thread(self.store.path, question.id)
        turns = [Turn("system", conversation.system)] if conversation.system.strip() else []
        turns += [Turn(each.role, each.content) for each in path]
        seed = randbits(63) & MAX_SEED if sampling.seed is None else sampling.seed
        begun: list[tuple[Served, Made, Generation]] = []
        try:
            for index, served in enumerate(chosen):
                prompt = await served.chat_tokens(turns)
                own = replace(sampling, seed=sample_seed(seed, index), stop_tokens=tuple(served.format.stop_tokens))
                generation = await generate(served, prompt, own)
                begun.append((served, made_of(served, own, prompt), generation))
            messages = []
            for served, made, generation in begun:
                message = await asyncio.to_thread(self._add, conversation.id, question.id, made)
                self._start(Running(message, served, made, generation, "", []))
                messages.append(message)
        except BaseException:
            for _, _, generation in begun:
                generation.cancel()
            raise
        return messages

    def _add(self, conversation: str, parent: str, made: Made) -> Message:
        return self.store.add_message(
            conversation, parent=parent, role="assistant", content="", status="running", made=made
        )

    async def go_on(self, message: Message, sampling: SamplingParams) -> Message:
        """Continue an answer that was cut off, in the same message.

        ValueError where it has ended or is continued already, and where it would no longer be what was judged or
        answered, or be of two models.
        """
        if message.id in self._running or message.id in self._starting:
            raise ValueError("this answer is being written; wait for its end, or stop it")
        self._starting.add(message.id)  # before anything is waited for: of two who ask at once, one is too late
        try:
            message = await asyncio.to_thread(self._continuable, message.id)
            made = message.made
            assert made is not None
            served = self.models.find(made.adapter or made.model)
            if made.revision != served.revision:
                raise ValueError("the model has changed since this answer was begun; ask for another answer instead")
            prompt = made.prompt_tokens + made.tokens
            if len(prompt) >= served.context_length:
                raise errors.context_exceeded(served.context_length, len(prompt))
            seed = randbits(63) & MAX_SEED if sampling.seed is None else sampling.seed
            own = replace(sampling, seed=seed, stop_tokens=tuple(served.format.stop_tokens))
            generation = await generate(served, prompt, own)
            try:
                await asyncio.to_thread(self.store.update_message, message.id, status="running")
            except BaseException:
                generation.cancel()
                raise
            message = replace(message, status="running")
            made = replace(made, sampling=made.sampling | _from(made, made_of(served, own, prompt)))
            self._start(Running(message, served, made, generation, message.content, made.tokens))
        finally:
            self._starting.discard(message.id)
        return message

    def _continuable(self, id: str) -> Message:
        message = self.store.message(id)
        if not can_continue(message):
            raise ValueError("this answer has come to its end; only one that was stopped or cut off can be continued")
        if any(each.parent == id for each in self.store.messages(message.conversation)):
            raise ValueError("the conversation has gone on behind this answer; ask for another answer instead")
        given = self.store.feedback(consent=None, conversation=message.conversation, tokens=False)
        if any(each.id == id for one in given for each in answers_of(one)):
            raise ValueError("this answer was judged as it is; take that back, or ask for another answer")
        return message

    async def stop(self, id: str) -> None:
        """End an answer; what there is of it stays. It is stored when this returns."""
        running = self._running.get(id)
        if running is not None and running.task is not None:
            running.generation.cancel()  # the task sees the end by itself, even where it has not begun
            await asyncio.wait([running.task])

    async def close(self) -> None:
        """End and store all that are under way."""
        await asyncio.gather(*(self.stop(id) for id in list(self._running)))

    # --- the task of one answer -----------------------------------------------------------------------------------

    def _start(self, running: Running) -> None:
        self.problems.pop(running.message.id, None)
        self._running[running.message.id] = running
        running.task = asyncio.create_task(self._write(running))

    async def _write(self, running: Running) -> None:
        problem = None
        try:
            async for piece in running.generation:
                running.text += piece
                running.tell()
                if time.monotonic() - running.stored > STORE_SECONDS:
                    await self._store(running, "running")
        except Exception as error:
            running.generation.cancel()
            problem = errors.of(error).message
        await self._finish(running, problem)

    async def _finish(self, running: Running, problem: str | None) -> None:
        completion = running.generation.completion
        if running.first:  # characters may have been cut through where it was stopped
            running.text = running.served.tokenizer.decode(running.tokens)
        else:
            running.text = completion.text
        status = "failed" if problem else "stopped" if completion.finish_reason == "cancelled" else "done"
        try:
            await self._store(running, status)
        except Exception as error:
            problem = errors.of(error).message
        if problem:
            self.problems[running.message.id] = problem
        self._running.pop(running.message.id, None)
        running.tell()

    async def _store(self, running: Running, status: Any) -> None:
        running.stored = time.monotonic()
        generation = running.generation
        before = running.made.seconds or 0.0
        reason = None if status == "running" else generation.completion.finish_reason
        made = replace(
            running.made,
            tokens=running.tokens,
            finish_reason=reason,
            seconds=before + time.monotonic() - generation.started,
        )
        await asyncio.to_thread(
            self.store.update_message, running.message.id, content=running.text, status=status, made=made
        )

    # --- who looks ------------------------------------------------------------------------------------------------

    async def events(self, ids: Sequence[str]) -> AsyncGenerator[bytes, None]:
        """Server-sent events of some answers, each from its beginning to its end."""
        news = asyncio.Event()
        left, sent = list(ids), dict.fromkeys(ids, _NEVER)
        watched: set[Running] = set()
        try:
            while left:
                news.clear()
                slowest = 0.0
                for id in list(left):
                    running = self._running.get(id)
                    began = time.monotonic()
                    if running is not None:
                        running.watchers.add(news)
                        watched.add(running)
                        blocks = await running.blocks()
                        if id in self._running and (told := _changed(sent[id], blocks)) is not None:
                            yield event({"id": id, "status": "running", "figures": running.figures(), **told})
                            sent[id] = blocks
                        slowest = max(slowest, time.monotonic() - began)
                        if id in self._running:
                            continue
                    message = await asyncio.to_thread(self._elsewhere, id)
                    if message.status != "running":
                        yield event({"id": id, "message": await asyncio.to_thread(self._view, message)})
                        left.remove(id)
                        continue
                    blocks = await asyncio.to_thread(render_blocks, message.content)
                    if (told := _changed(sent[id], blocks)) is not None:
                        yield event({"id": id, "status": "running", "figures": None, **told})
                        sent[id] = blocks
                if left:
                    await self._pause(news, left, max(DRAW_SECONDS, 8 * slowest))
        finally:
            for running in watched:
                running.watchers.discard(news)

    async def _pause(self, news: asyncio.Event, left: Sequence[str], seconds: float) -> None:
        """Until there is news; answers of another process are looked at every second."""
        await asyncio.sleep(seconds)
        longest = None if all(id in self._running for id in left) else 1.0
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(news.wait(), longest)

    def _elsewhere(self, id: str) -> Message:
        """A message that is not written here: another server writes it, or one that is gone did."""
        message = self.store.message(id)
        if message.status == "running" and time.time() - message.updated > ABANDONED_SECONDS:
            self.store.stop_abandoned(older_than_seconds=ABANDONED_SECONDS)
            message = self.store.message(id)
        return message


_NEVER: list[str] = ["\0"]


def _changed(before: list[str], blocks: list[str]) -> dict[str, Any] | None:
    """The blocks from the first one that changed; None if none did."""
    if before is _NEVER:
        return {"from": 0, "blocks": blocks}
    if before == blocks:
        return None
    same = 0
    while same < min(len(before), len(blocks)) and before[same] == blocks[same]:
        same += 1
    return {"from": same, "blocks": blocks[same:]}


def made_of(served: Served, sampling: SamplingParams, prompt: list[int]) -> Made:
    """The record of an answer that begins."""
    fields = asdict(replace(sampling, grammar=None))
    return Made(
        model=served.parent or served.name,
        adapter=served.adapter,
        sampling={name: fields[name] for name in SAMPLING if fields[name] is not None},
        seed=sampling.seed,
        prompt_tokens=prompt,
        revision=served.revision,
    )


def can_continue(message: Message) -> bool:
    """Whether an answer was cut off."""
    made = message.made
    if message.role != "assistant" or made is None or message.status == "running" or not made.tokens:
        return False
    return made.finish_reason != "stop"


def _from(made: Made, more: Made) -> dict[str, Any]:
    """What a continuation is sampled with, where it differs: `seed_from_12` is the seed from token 12 on."""
    own = more.sampling | {"seed": more.seed}
    return {f"{name}_from_{len(made.tokens)}": value for name, value in own.items() if made.sampling.get(name) != value}


def shown_context(served: Served) -> int | None:
    """Tokens of context; None where there is no end."""
    return served.context_length if served.context_length < 2**31 - 1 else None
