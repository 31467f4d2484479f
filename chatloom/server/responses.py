"""/v1/responses: input items in, output items out, whole or as events.

The same engine, tools and formats as /v1/chat/completions in other words. Nothing is kept between requests, so the
conversation so far is sent each time; what would need it kept is refused by name.
"""

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from chatloom.server import answering, errors, logprobs, tools
from chatloom.server.events import EventStream, event
from chatloom.server.generation import Generation
from chatloom.server.response_items import (
    LOGPROBS,
    Output,
    ResponseBody,
    ResponseObject,
    ResponseUsage,
    Status,
    messages_of,
    refuse_unsupported,
)
from chatloom.server.schemas import Sampled
from chatloom.server.served import Served

router = APIRouter()


@router.post("/v1/responses", response_model=ResponseObject, responses=errors.RESPONSES)
async def create(body: ResponseBody, request: Request) -> Response:
    """The next items of a conversation."""
    served = answering.models_of(request).find(body.model)
    refuse_unsupported(body)
    messages = messages_of(body)
    use = tools.asked(
        body.tools,
        body.tool_choice,
        parallel=body.parallel_tool_calls,
        format=None if body.text is None else body.text.format,
        format_of_calls=lambda: served.format.call_form,
        words=tools.RESPONSES,
    )
    prompt = await served.chat_tokens(messages, use.tools, param="input")
    sampling = answering.sampling_of(
        Sampled(model=body.model, temperature=body.temperature, top_p=body.top_p),
        served,
        max_tokens=body.max_output_tokens,
        stop_tokens=served.format.stop_tokens,
        top_logprobs=body.top_logprobs or 0,
        grammar=use.grammar,
    )
    with use.blame():
        (generation,) = await answering.several(served, prompt, sampling, 1)
    answer = _Answer(body, served, use, generation)
    if body.stream:
        return EventStream(answer.events())
    whole = await answering.unless_gone(request, answer.whole())
    return Response(whole.model_dump_json(), media_type="application/json")


class _Answer:
    """The answer of one request."""

    def __init__(self, body: ResponseBody, served: Served, use: tools.ToolUse, generation: Generation) -> None:
        self.body, self.served, self.generation = body, served, generation
        self.id, self.created = answering.new_id("resp_"), answering.now()
        self.reader, self.output = use.reader(), Output()
        self.noted = logprobs.Noted(served.tokenizer, generation) if LOGPROBS in (body.include or ()) else None
        self.reason: str = "stop"

    async def whole(self) -> ResponseObject:
        """When all is there."""
        async for _ in self._grow():
            pass
        return self._object(self._status)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """As it comes. What goes wrong on the way is an event with an error."""
        number = 0

        def numbered(data: dict[str, Any]) -> bytes:
            nonlocal number
            number += 1
            return event({**data, "sequence_number": number - 1}, name=data["type"])

        try:
            for kind in ("created", "in_progress"):
                yield numbered(self._told(f"response.{kind}", "in_progress"))
            async for each in self._grow():
                yield numbered(each)
            yield numbered(self._told(f"response.{self._status}", self._status))
        except Exception as error:
            told = errors.of(error).told()["error"]
            failed = self._object("failed").model_dump()
            failed["error"] = {"code": "server_error", "message": told["message"]}
            yield numbered({"type": "response.failed", "response": failed})
        finally:
            self.generation.cancel()

    async def _grow(self) -> AsyncGenerator[dict[str, Any], None]:
        async for number, piece in answering.merged([self.generation]):
            assert number == 0
            pieces = self.reader.rest() if piece is None else self.reader.pieces(piece)
            fresh = [] if self.noted is None else self.noted.chat()
            for each in self.output.take(pieces, [one.model_dump() for one in fresh]):
                yield each
            if self.reader.done:
                self.generation.cancel()
        self.reason = "stop" if self.reader.done else answering.reason_of(self.generation)
        for each in self.output.finish(whole=self.reason == "stop"):
            yield each

    @property
    def _status(self) -> Status:
        return "completed" if self.reason == "stop" else "incomplete"

    def _told(self, kind: str, status: Status) -> dict[str, Any]:
        return {"type": kind, "response": self._object(status).model_dump()}

    def _object(self, status: Status) -> ResponseObject:
        body, text = self.body, self.body.text
        ended = status in ("completed", "incomplete")
        usage = answering.usage_of([self.generation]) if ended else None
        return ResponseObject(
            id=self.id,
            created_at=self.created,
            status=status,
            incomplete_details={"reason": "max_output_tokens"} if status == "incomplete" else None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata or {},
            model=body.model,
            output=self.output.items if ended else [],
            parallel_tool_calls=body.parallel_tool_calls is not False,
            temperature=1.0 if body.temperature is None else body.temperature,
            text={"format": (text and text.format) or {"type": "text"}, "verbosity": "medium"},
            tool_choice=body.tool_choice or "auto",
            tools=[{"parameters": None, **tool, "strict": tool.get("strict") is True} for tool in body.tools or ()],
            top_logprobs=body.top_logprobs or 0,
            top_p=1.0 if body.top_p is None else body.top_p,
            usage=None
            if usage is None
            else ResponseUsage(
                input_tokens=usage.prompt_tokens,
                input_tokens_details={"cached_tokens": usage.prompt_tokens_details.cached_tokens},
                output_tokens=usage.completion_tokens,
                output_tokens_details={"reasoning_tokens": 0},
                total_tokens=usage.total_tokens,
            ),
            user=body.user,
        )
