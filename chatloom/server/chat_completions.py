"""/v1/chat/completions: a conversation in, the assistant's next turn out, whole or as it is written.

Neighbours of one role become one message. What may be called and how the answer is read is for `tools` to say.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from chatloom.chat.message import Message, Role, conversation, tool_calls
from chatloom.chat.message import ToolCall as Call
from chatloom.server import answering, errors, logprobs, tools
from chatloom.server.events import DONE, EventStream, event
from chatloom.server.generation import Generation
from chatloom.server.schemas import (
    AnswerMessage,
    ChatBody,
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    FinishReason,
    Part,
    ToolCall,
)
from chatloom.server.served import Served

router = APIRouter()


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=errors.STREAMED)
async def create(body: ChatBody, request: Request) -> Response:
    """The assistant's next turn."""
    served = answering.models_of(request).find(body.model)
    _check(body)
    messages = conversation_of(body.messages)
    use = tools.asked(
        body.tools,
        body.tool_choice,
        parallel=body.parallel_tool_calls,
        format=body.response_format,
        format_of_calls=lambda: served.format.call_form,
    )
    prompt = await served.chat_tokens(messages, use.tools)
    sampling = answering.sampling_of(
        body,
        served,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        stop_tokens=served.format.stop_tokens,
        top_logprobs=body.top_logprobs or 0,
        grammar=use.grammar,
    )
    with use.blame():
        generations = await answering.several(served, prompt, sampling, body.n or 1)
    answer = _Answer(body, served, use, generations)
    if body.stream:
        return EventStream(answer.chunks())
    whole = await answering.unless_gone(request, answer.whole())
    return Response(whole.model_dump_json(exclude_unset=False), media_type="application/json")


def _check(body: ChatBody) -> None:
    if body.top_logprobs and not body.logprobs:
        raise errors.invalid("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise errors.invalid("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise errors.invalid("Give 'max_completion_tokens' or 'max_tokens', not both.", param="max_tokens")
    if body.max_tokens == 0:
        raise errors.invalid("Invalid 'max_tokens': it must be at least 1.", param="max_tokens")
    for name, instead in (("functions", "tools"), ("function_call", "tool_choice")):
        if getattr(body, name) is not None:
            raise errors.invalid(
                f"{name!r} is not supported; use {instead!r}.", param=name, code="unsupported_parameter"
            )


class _Answer:
    """The answers of one request."""

    def __init__(self, body: ChatBody, served: Served, use: tools.ToolUse, generations: Sequence[Generation]) -> None:
        self.body, self.served, self.generations = body, served, generations
        self.id, self.created = answering.new_id("chatcmpl-"), answering.now()
        self.readers = [use.reader() for _ in generations]
        self.noted = [logprobs.Noted(served.tokenizer, each) if body.logprobs else None for each in generations]

    async def whole(self) -> ChatCompletion:
        """When all is there."""
        messages: list[list[dict[str, Any]]] = [[] for _ in self.generations]
        async for number, piece in answering.merged(self.generations):
            if piece is not None:
                messages[number] += self._read(number, piece)
        choices = []
        for number, noted in enumerate(self.noted):
            rest, reason = self._finish(number)
            content = None if noted is None else ChatLogprobs(content=noted.chat())
            message = joined([*messages[number], *rest])
            choices.append(ChatChoice(index=number, message=message, logprobs=content, finish_reason=reason))
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.body.model,
            choices=choices,
            usage=answering.usage_of(self.generations),
            system_fingerprint=self.served.revision,
        )

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """As it comes. What goes wrong on the way is an event with an error."""
        try:
            for number, reader in enumerate(self.readers):
                content = None if reader.may_call else ""
                yield self._chunk(number, {"role": "assistant", "content": content, "refusal": None})
            async for number, piece in answering.merged(self.generations):
                if piece is None:
                    deltas, reason = self._finish(number)
                else:
                    deltas, reason = self._read(number, piece), None
                noted = self.noted[number]
                fresh = None if noted is None else noted.chat()
                for place, delta in enumerate(deltas):
                    yield self._chunk(number, delta, noted=fresh if place == 0 else None)
                if piece is None:
                    yield self._chunk(number, {}, reason=reason, noted=None if deltas else fresh)
            options = self.body.stream_options
            if options is not None and options.include_usage:
                yield event(self._head() | {"choices": [], "usage": answering.usage_of(self.generations).model_dump()})
            yield DONE
        except Exception as error:
            yield event(errors.of(error).told())
        finally:
            answering.give_up(self.generations)

    def _read(self, number: int, piece: str) -> list[dict[str, Any]]:
        deltas = self.readers[number].push(piece)
        if self.readers[number].done:
            self.generations[number].cancel()
        return deltas

    def _finish(self, number: int) -> tuple[list[dict[str, Any]], FinishReason]:
        reader = self.readers[number]
        return reader.finish("stop" if reader.done else answering.reason_of(self.generations[number]))

    def _head(self) -> dict[str, Any]:
        head = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.body.model,
            "service_tier": "default",
            "system_fingerprint": self.served.revision,
        }
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            head["usage"] = None
        return head

    def _chunk(
        self,
        number: int,
        delta: dict[str, Any],
        *,
        reason: FinishReason | None = None,
        noted: Sequence[Any] | None = None,
    ) -> bytes:
        content = {"content": [each.model_dump() for each in noted], "refusal": None} if noted else None
        choice = {"index": number, "delta": delta, "logprobs": content, "finish_reason": reason}
        return event(self._head() | {"choices": [choice]})


def joined(deltas: Sequence[dict[str, Any]]) -> AnswerMessage:
    """The message that some deltas make."""
    texts = [delta["content"] for delta in deltas if delta.get("content") is not None]
    refusals = [delta["refusal"] for delta in deltas if delta.get("refusal") is not None]
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        for call in delta.get("tool_calls") or ():
            known = calls.setdefault(call["index"], {"id": "", "function": {"name": "", "arguments": ""}})
            known["id"] += call.get("id") or ""
            for name, text in call.get("function", {}).items():
                known["function"][name] += text or ""
    return AnswerMessage(
        content="".join(texts) if texts or not (calls or refusals) else None,
        refusal="".join(refusals) if refusals else None,
        tool_calls=[ToolCall.model_validate(call) for _, call in sorted(calls.items())] or None,
    )


# --- messages -------------------------------------------------------------------------------------------------


def conversation_of(messages: Sequence[ChatMessage], name: str = "messages") -> tuple[Message, ...]:
    """The conversation that clients' messages are, which are those of the parameter `name`.

    Theirs need not alternate: neighbours of one role become one message, an empty line between them. Templates know a
    system message at the beginning alone, so what a later one says is said in the user's turn at its place. APIError
    for what no template can render, and where the assistant has the last word, which would have to be continued.
    """
    found: list[Message] = []
    for index, message in enumerate(messages):
        param = f"{name}[{index}]"
        if message.role == "function" or message.function_call:
            raise errors.invalid("Functions are not supported; use tools.", param=param, code="unsupported_value")
        role: Role = "system" if message.role == "developer" else message.role
        text = text_of(message, param)
        calls = calls_of(message, param)
        last = found[-1] if found else None
        if role == "system" and last is not None and last.role != "system":
            role = "user"
        if last is not None and last.role == role != "tool" and not last.tool_calls:
            found[-1] = Message(role, "\n\n".join(each for each in (last.content, text) if each), calls)
        else:
            found.append(Message(role, text, calls, message.tool_call_id or ""))
    if found[-1].role == "assistant":
        raise errors.invalid(
            "The last message must not be the assistant's: an answer cannot be continued here.", param=name
        )
    try:
        return conversation(found)
    except ValueError as error:
        raise errors.invalid(f"Invalid '{name}': {error}.", param=name) from error


def calls_of(message: ChatMessage, param: str) -> tuple[Call, ...]:
    """The calls that a message makes. APIError for what is none."""
    if not message.tool_calls:
        return ()
    try:
        return tool_calls(message.tool_calls)
    except ValueError as error:
        raise errors.invalid(f"Invalid '{param}.tool_calls': {error}.", param=f"{param}.tool_calls") from error


def text_of(message: ChatMessage, param: str) -> str:
    """The text of a message, its parts put together. APIError for what is no text."""
    content = message.content
    if content is None:
        if message.role != "assistant":
            raise errors.invalid(f"Invalid '{param}.content': it must be a string.", param=f"{param}.content")
        return message.refusal or ""
    if isinstance(content, str):
        return content
    return "".join(_text_of_part(part, f"{param}.content[{index}]") for index, part in enumerate(content))


def _text_of_part(part: Part, param: str) -> str:
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in ("text", "refusal", "input_text", "output_text"):
        raise errors.invalid(
            f"Invalid '{param}.type': this model reads text alone, and the part is {part.type[:60]!r}.",
            param=f"{param}.type",
            code="unsupported_content",
        )
    if text is None:
        raise errors.invalid(f"Missing required parameter: '{param}.text'.", param=f"{param}.text")
    return text
