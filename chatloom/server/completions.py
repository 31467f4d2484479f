"""/v1/completions: texts in, their continuations out; with `echo` and `logprobs` also how likely the texts are.

The log-probabilities of a prompt are computed where its keys and values are (`SamplingParams.prompt_logprobs`), so that
scoring a text is one more request among those under way. `max_tokens` 0 scores and writes nothing.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from chatloom.engine.request import Completion, SamplingParams, sample_seed
from chatloom.server import answering, errors
from chatloom.server.events import DONE, EventStream, event
from chatloom.server.generation import Generation, generate
from chatloom.server.logprobs import TokenTexts, text_logprobs
from chatloom.server.schemas import CompletionBody, FinishReason, TextChoice, TextCompletion, TextLogprobs
from chatloom.server.served import Served

router = APIRouter()
MAX_TOKENS = 16  # OpenAI's default
MAX_PROMPTS = 2048
AT_ONCE = 64  # answers of one request under way: it shares the engine with others


@dataclass(frozen=True)
class Prompt:
    """One prompt, as text and as tokens."""

    text: str
    tokens: list[int]
    num_added: int  # of the tokens, those before the text


@router.post("/v1/completions", response_model=TextCompletion, responses=errors.STREAMED)
async def create(body: CompletionBody, request: Request) -> Response:
    """Continue texts."""
    served = answering.models_of(request).find(body.model)
    _check(body)
    prompts = [await _prompt(each, served) for each in _prompts(body)]
    top = body.logprobs or 0
    max_tokens = MAX_TOKENS if body.max_tokens is None else body.max_tokens
    sampling = answering.sampling_of(
        body,
        served,
        max_tokens=max_tokens,
        stop_tokens=served.model.text_ends(served.adapter),
        top_logprobs=top,
    )
    if body.echo and body.logprobs is not None:
        sampling = replace(sampling, prompt_logprobs=top)
    answer = _Answer(body, served, prompts, sampling)
    if body.stream:
        return EventStream(answer.chunks(await answer.begin(answer.jobs)))
    whole = await answering.unless_gone(request, answer.whole())
    return Response(whole.model_dump_json(), media_type="application/json")


def _check(body: CompletionBody) -> None:
    n, best_of = body.n or 1, body.best_of
    if body.suffix:
        raise errors.invalid(
            "'suffix' is not supported: these models continue a text and cannot fill one in.",
            param="suffix",
            code="unsupported_parameter",
        )
    if body.stream_options is not None and not body.stream:
        raise errors.invalid("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    if best_of is not None and best_of < n:
        raise errors.invalid(f"'best_of' is {best_of}; it must be at least n, {n}.", param="best_of")
    if best_of is not None and best_of > n and body.stream:
        raise errors.invalid("The best of several is known at the end, and cannot be streamed.", param="best_of")


def _prompts(body: CompletionBody) -> Sequence[str | list[int]]:
    given: Any = body.prompt
    one = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
    prompts: Sequence[str | list[int]] = [given] if one else given
    if not prompts:
        raise errors.invalid("Invalid 'prompt': the list is empty.", param="prompt", code="empty_array")
    most = AT_ONCE if body.stream else MAX_PROMPTS
    count = len(prompts) * max(body.n or 1, body.best_of or 1)
    if count > most:
        kind = "in a stream" if body.stream else "of a request"
        raise errors.invalid(f"{count} completions are asked for, and {most} {kind} are allowed.", param="prompt")
    return prompts


async def _prompt(given: str | list[int], served: Served) -> Prompt:
    if isinstance(given, str):
        tokens = await served.text_tokens(given)
        if not tokens:
            raise errors.invalid("Invalid 'prompt': it is empty, and this model begins no text.", param="prompt")
        return Prompt(given, tokens, len(served.tokenizer.document_start))
    served.refuse_long(given, "prompt")
    if not given or max(given) >= served.model.model.config.vocab_size:
        raise errors.invalid("Invalid 'prompt': it is empty, or has a token that the model has not.", param="prompt")
    return Prompt(served.tokenizer.decode(given), given, 0)


@dataclass(frozen=True)
class _Job:
    """One answer that is asked for."""

    prompt: int
    sample: int


class _Answer:
    """The answers of one request."""

    def __init__(
        self, body: CompletionBody, served: Served, prompts: Sequence[Prompt], sampling: SamplingParams
    ) -> None:
        self.body, self.served, self.prompts, self.sampling = body, served, prompts, sampling
        self.id, self.created = answering.new_id("cmpl-"), answering.now()
        self.n = body.n or 1
        self.jobs = [
            _Job(prompt, sample) for prompt in range(len(prompts)) for sample in range(max(self.n, body.best_of or 1))
        ]
        self.mute = body.max_tokens == 0
        self.texts = TokenTexts(served.tokenizer)

    async def begin(self, jobs: Sequence[_Job]) -> list[Generation]:
        """Let answers begin; none where one cannot."""
        begun: list[Generation] = []
        try:
            for job in jobs:
                assert self.sampling.seed is not None
                params = replace(self.sampling, seed=sample_seed(self.sampling.seed, job.sample))
                tokens = self.prompts[job.prompt].tokens
                begun.append(await generate(self.served, tokens, params, again=job.sample > 0))
        except BaseException:
            answering.give_up(begun)
            raise
        return begun

    async def whole(self) -> TextCompletion:
        """When all is there."""
        generations: list[Generation] = []
        for first in range(0, len(self.jobs), AT_ONCE):
            begun = await self.begin(self.jobs[first : first + AT_ONCE])
            try:
                await asyncio.gather(*(each.text() for each in begun))
            finally:
                answering.give_up(begun)
            generations += begun
        reasons = [answering.reason_of(each) for each in generations]
        choices = [
            TextChoice(
                index=index,
                text=self._text(number, generations[number].completion.text),
                logprobs=self._logprobs(number, generations[number].completion),
                finish_reason=self._reason(reasons[number]),
            )
            for index, number in enumerate(self._chosen(generations))
        ]
        return TextCompletion(
            id=self.id,
            created=self.created,
            model=self.body.model,
            choices=choices,
            usage=self._usage(generations),
            system_fingerprint=self.served.revision,
        )

    def _chosen(self, generations: Sequence[Generation]) -> Iterator[int]:
        """The numbers of the answers that are given: all, or of each prompt the `n` likeliest."""
        samples = len(self.jobs) // len(self.prompts)
        for first in range(0, len(self.jobs), samples):
            own = list(range(first, first + samples))
            if samples > self.n:
                own.sort(key=lambda number: -generations[number].completion.mean_logprob)
            yield from own[: self.n]

    def _text(self, number: int, written: str) -> str:
        head = self.prompts[self.jobs[number].prompt].text if self.body.echo else ""
        return head + ("" if self.mute else written)

    def _reason(self, reason: FinishReason) -> FinishReason:
        return "length" if self.mute else reason

    def _usage(self, generations: Sequence[Generation]) -> Any:
        firsts = [each for each, job in zip(generations, self.jobs) if job.sample == 0]
        usage = answering.usage_of(generations, firsts)
        if self.mute:
            usage.completion_tokens, usage.total_tokens = 0, usage.prompt_tokens
        return usage

    def _logprobs(self, number: int, completion: Completion, *, given: int = 0) -> TextLogprobs | None:
        """Of the prompt, if it is echoed and nothing was given yet, and of the answer but its first `given` tokens."""
        if self.body.logprobs is None:
            return None
        prompt = self.prompts[self.jobs[number].prompt]
        own = range(given, 0 if self.mute else len(completion.tokens))
        top = completion.top_logprobs
        tokens = [completion.tokens[place] for place in own]
        logprobs: list[float | None] = [completion.logprobs[place] for place in own]
        likely = [[] if top is None else top[place] for place in own]
        decode = self.served.tokenizer.decode
        offset = len(decode(completion.tokens[:given])) + (len(prompt.text) if self.body.echo else 0)
        if self.body.echo and not given:
            assert completion.prompt_logprobs is not None
            assert completion.prompt_top_logprobs is not None
            behind = slice(prompt.num_added, None)
            tokens = prompt.tokens[behind] + tokens
            logprobs = completion.prompt_logprobs[behind] + logprobs
            likely = completion.prompt_top_logprobs[behind] + likely
            offset = 0
        return text_logprobs(self.texts, tokens, logprobs, likely, offset=offset)

    async def chunks(self, generations: Sequence[Generation]) -> AsyncGenerator[bytes, None]:
        """As it comes. What goes wrong on the way is an event with an error."""
        given = [0] * len(generations)  # tokens whose log-probabilities were given
        begun = [False] * len(generations)
        try:
            async for number, piece in answering.merged(generations):
                text = "" if self.mute else piece or ""
                if not begun[number]:
                    begun[number], text = True, self._text(number, text)
                noted = None
                if self.body.logprobs is not None:
                    completion = generations[number].completion
                    noted = self._logprobs(number, completion, given=given[number])
                    given[number] = len(completion.tokens)
                reason = None if piece is not None else self._reason(answering.reason_of(generations[number]))
                choice = {
                    "index": number,
                    "text": text,
                    "logprobs": None if noted is None else noted.model_dump(),
                    "finish_reason": reason,
                }
                yield event(self._head() | {"choices": [choice]})
            if self._includes_usage:
                yield event(self._head() | {"choices": [], "usage": self._usage(generations).model_dump()})
            yield DONE
        except Exception as error:
            yield event(errors.of(error).told())
        finally:
            answering.give_up(generations)

    @property
    def _includes_usage(self) -> bool:
        return bool(self.body.stream_options and self.body.stream_options.include_usage)

    def _head(self) -> dict[str, Any]:
        head = {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.body.model,
            "system_fingerprint": self.served.revision,
        }
        return head | {"usage": None} if self._includes_usage else head
