"""What /v1/responses takes and gives: the body, its input items as a conversation, and the answer's items as they grow.

An answer is a list of items, each a message or a call of a function. `Output` makes them of the pieces of the answer's
text, with the events that tell a client how they grow; the whole answer is what the events add up to.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from chatloom.chat.calls import Piece
from chatloom.chat.message import Message
from chatloom.server import answering, errors
from chatloom.server.chat_completions import conversation_of
from chatloom.server.schemas import ChatMessage, Metadata, Name, Part, StreamOptions, Strict
from chatloom.server.tools import new_call_id

LOGPROBS = "message.output_text.logprobs"


class TextOptions(Strict):
    """What the text may be."""

    format: dict[str, Any] | None = None
    verbosity: Literal["medium"] | None = None


class ResponseBody(Strict):
    """The body of /v1/responses. What would be kept between requests is refused: see `refuse_unsupported`."""

    model: Name
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    text: TextOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None
    prompt: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    max_tool_calls: int | None = None
    truncation: Literal["disabled"] | None = None
    # Labels, and what has one value here.
    metadata: Metadata | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    user: str | None = None


class ResponseUsage(BaseModel):
    """Tokens read and written."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


Status = Literal["in_progress", "completed", "incomplete", "failed"]


class ResponseObject(BaseModel):
    """The answer of /v1/responses."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    background: Literal[False] = False
    error: dict[str, Any] | None = None
    incomplete_details: dict[str, Any] | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None = None
    metadata: dict[str, str]
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: dict[str, None] = {"effort": None, "summary": None}
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None
    user: str | None = None


def refuse_unsupported(body: ResponseBody) -> None:
    """APIError for what this server does not do."""
    kept = "this server keeps no responses; send the items so far as 'input'"
    for name, given, why in (
        ("previous_response_id", body.previous_response_id, kept),
        ("conversation", body.conversation, kept),
        ("store", body.store, "this server keeps no responses; leave it out or give false"),
        ("background", body.background, "answers are given while the client waits"),
        ("prompt", body.prompt, "this server keeps no prompts; send 'instructions' and 'input'"),
        ("reasoning", any((body.reasoning or {}).values()), "this model does not reason apart from its answer"),
        ("max_tool_calls", body.max_tool_calls, "it is for tools that a server runs, and this one runs none"),
    ):
        if given:
            message = f"Unsupported parameter: '{name}': {why}."
            raise errors.invalid(message, param=name, code="unsupported_parameter")
    if body.stream_options is not None and not body.stream:
        raise errors.invalid("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    if body.top_logprobs and LOGPROBS not in (body.include or ()):
        raise errors.invalid(f"'top_logprobs' needs '{LOGPROBS}' in 'include'.", param="top_logprobs")


# --- what comes in --------------------------------------------------------------------------------------------


def messages_of(body: ResponseBody) -> tuple[Message, ...]:
    """The conversation that a body has. APIError for items that there cannot be here."""
    given: Sequence[Mapping[str, Any]] = (
        [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    )
    found = list[ChatMessage]()
    for index, item in enumerate(given):
        message = _message(item, f"input[{index}]")
        last = found[-1] if found else None
        if message.tool_calls and last is not None and last.role == "assistant":  # calls of one turn are items each
            found[-1] = last.model_copy(update={"tool_calls": [*(last.tool_calls or []), *message.tool_calls]})
        else:
            found.append(message)
    messages = conversation_of(found, "input")
    if not body.instructions:
        return messages
    own = body.instructions
    if messages[0].role == "system":
        own, messages = f"{own}\n\n{messages[0].content}", messages[1:]
    return (Message("system", own), *messages)


def _message(item: Mapping[str, Any], param: str) -> ChatMessage:
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        if role not in ("system", "developer", "user", "assistant"):
            raise errors.invalid(
                f"Invalid value: {role!r:.60}. Supported values are: 'assistant', 'system', 'developer', and 'user'.",
                param=f"{param}.role",
                code="invalid_value",
            )
        return ChatMessage(role=role, content=_content(item.get("content"), f"{param}.content"))
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": _text(item, "call_id", param), "type": "function", "function": function}
        return ChatMessage(role="assistant", tool_calls=[call])
    if kind == "function_call_output":
        content = _content(item.get("output"), f"{param}.output")
        return ChatMessage(role="tool", tool_call_id=_text(item, "call_id", param), content=content)
    raise errors.invalid(
        f"Invalid value: {kind!r:.60}. Supported values are: 'message', 'function_call' and 'function_call_output'.",
        param=f"{param}.type",
        code="invalid_value",
    )


def _content(value: Any, param: str) -> str | list[Part]:
    if isinstance(value, str):
        return value
    fine = isinstance(value, list) and all(isinstance(part, dict) for part in value)
    try:
        if fine:
            return [Part.model_validate(part) for part in value]
    except ValidationError:
        pass
    raise errors.invalid(f"Invalid '{param}': it must be a string or a list of parts.", param=param)


def _text(item: Mapping[str, Any], name: str, param: str) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not value:
        raise errors.invalid(f"Invalid '{param}.{name}': it must be a string.", param=f"{param}.{name}")
    return value


# --- what goes out --------------------------------------------------------------------------------------------


class Output:
    """The items of one answer, as its pieces come."""

    def __init__(self) -> None:
        self.items = list[dict[str, Any]]()
        self._open = False

    def take(self, pieces: Sequence[Piece], logprobs: Sequence[Any] = ()) -> Iterator[dict[str, Any]]:
        """The events of some pieces."""
        for piece in pieces:
            if piece.is_name:
                yield from self.close()
                yield from self._begin_call(piece.text)
            elif piece.call is not None:
                item = self.items[-1]
                item["arguments"] += piece.text
                yield self._event("response.function_call_arguments.delta", delta=piece.text)
            else:
                if not self._open:
                    yield from self._begin_message()
                part = self.items[-1]["content"][0]
                part["text"] += piece.text
                part["logprobs"] += logprobs
                yield self._event("response.output_text.delta", **_FIRST, delta=piece.text, logprobs=[*logprobs])
                logprobs = ()

    def finish(self, *, whole: bool) -> Iterator[dict[str, Any]]:
        """The last events; `whole` unless the answer was cut short."""
        if not self.items:
            yield from self._begin_message()
        yield from self.close("completed" if whole else "incomplete")

    def close(self, status: Status = "completed") -> Iterator[dict[str, Any]]:
        """The events of an item's end."""
        if not self._open:
            return
        self._open, item = False, self.items[-1]
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            yield self._event("response.output_text.done", **_FIRST, text=part["text"], logprobs=part["logprobs"])
            yield self._event("response.content_part.done", **_FIRST, part=part)
        else:
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield self._event("response.function_call_arguments.done", **done)
        yield {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}

    def _begin_message(self) -> Iterator[dict[str, Any]]:
        item = {"id": answering.new_id("msg_"), "type": "message", "status": "in_progress", "role": "assistant"}
        yield self._begin({**item, "content": []})
        part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self.items[-1]["content"] = [part]
        yield self._event("response.content_part.added", **_FIRST, part={**part, "logprobs": []})

    def _begin_call(self, name: str) -> Iterator[dict[str, Any]]:
        item = {"id": answering.new_id("fc_"), "type": "function_call", "status": "in_progress"}
        yield self._begin({**item, "arguments": "", "call_id": new_call_id(), "name": name})

    def _begin(self, item: dict[str, Any]) -> dict[str, Any]:
        self.items.append(item)
        self._open = True
        return {"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": {**item}}

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, **fields}


_FIRST = {"content_index": 0}
