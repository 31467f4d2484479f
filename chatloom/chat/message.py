"""Messages and conversations: who said what, checked once where text enters Chatloom.

A conversation is a plain tuple of messages, so it is hashable, cheap to slice and never changes under a reader.
It is an optional system message followed by turns of the user and the assistant in alternation; a turn in which the
assistant calls tools is followed by one tool message for each call, and then by anyone's. `conversation`
holds that shape for everything (prompts, demonstrations, a chat in progress); `check_trainable` asks in addition
for what a demonstration needs: something that the assistant says in answer to something.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args
from unicodedata import category

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)

TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool: its name and the JSON text of its arguments, an object, as the assistant wrote it."""

    name: str
    arguments: str
    id: str = ""  # by which a tool message answers it

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not TOOL_NAME.fullmatch(self.name):
            raise ValueError(
                f"the name of a tool is {_describe(self.name)}; it must be 1 to 64 of a-z, A-Z, 0-9, _ and -"
            )
        if not isinstance(self.id, str):
            raise ValueError(f"the id of the call of {self.name} is {_describe(self.id)}; it must be a string")
        if not isinstance(self.arguments, str) or not isinstance(self.values, dict):
            raise ValueError(
                f"the arguments for {self.name} are {_describe(self.arguments)}; they must be the text of a JSON object"
            )

    @property
    def values(self) -> Any:
        """The arguments as a mapping; None where they are no JSON, as when an answer was cut short."""
        try:
            return json.loads(self.arguments)
        except (ValueError, RecursionError):
            return None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: `role` is one of ROLES, `content` its plain text. Any other role or type is a ValueError."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()  # of the assistant
    tool_call_id: str = ""  # of a tool message: the call whose result it is

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"the role is {self.role!r}; it must be one of {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            raise ValueError(
                f"the content of the {self.role} message is {_describe(self.content)}; it must be a string"
            )
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"a {self.role} message calls tools; only the assistant may")


Conversation = tuple[Message, ...]


def conversation(items: Iterable[Mapping[str, Any] | Message]) -> Conversation:
    """Build a conversation from messages or {"role", "content"} mappings.

    An empty iterable gives an empty conversation. Raises ValueError, naming the index of the message and what is
    allowed, for a missing field, an unknown role, content that is not a string, a system message that is not
    first, two turns of one role in a row, and a call of a tool without a result or the other way round. Results of
    one turn's calls are put in the order of the calls, because few chat templates write whose they are.
    """
    if isinstance(items, (str, bytes, Mapping)):
        raise ValueError(
            f'a conversation is a list of messages such as {{"role": "user", "content": "..."}}, '
            f"and what was given is {_describe(items)}"
        )
    messages = _with_results([_message(item, index) for index, item in enumerate(items)])
    _check_alternation(messages)
    return messages


def check_trainable(conv: Conversation) -> None:
    """Raise ValueError, saying which message and why, unless `conv` can be trained on.

    It must alternate, have at least one assistant turn, begin with the user (after an optional system message),
    and leave no turn empty. It may end with the user: what follows the last assistant turn is never in the loss.
    """
    if not conv:
        raise ValueError("the conversation is empty; it needs at least one user and one assistant turn")
    _check_alternation(conv)
    if not any(message.role == "assistant" for message in conv):
        raise ValueError(
            f"the conversation has no assistant turn (roles: {_roles(conv)}), so there is nothing to learn; "
            "add an assistant message or leave the conversation out"
        )
    first = 1 if conv[0].role == "system" else 0
    if conv[first].role == "assistant":
        raise ValueError(
            f"message {first} is an assistant turn with no user turn before it; "
            "a conversation begins with the user, after an optional system message"
        )
    for index, message in enumerate(conv):
        if message.tool_calls or message.role == "tool":
            raise ValueError(
                f"message {index} ({message.role}) is about a call of a tool, and training on tools is not supported; "
                "leave the conversation out"
            )
        if not message.content.strip():
            raise ValueError(f"message {index} ({message.role}) is empty; give it text or leave the conversation out")


def to_dicts(conv: Iterable[Message]) -> list[dict[str, Any]]:
    """Return the conversation as the list of {"role", "content"} that templates, JSON and OpenAI clients use.

    Calls of tools are as templates expect them: `{"type", "id", "function": {"name", "arguments": {...}}}`.
    """
    return [_dict(message) for message in conv]


def _dict(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        plain["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": call.values}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _message(item: Mapping[str, Any] | Message, index: int) -> Message:
    if isinstance(item, Message):
        return item
    if not isinstance(item, Mapping):
        raise ValueError(f'message {index} is {_describe(item)}; it must be {{"role": ..., "content": ...}}')
    calls = item.get("tool_calls") or ()
    fields = {"content": None, **item} if calls else item
    for field in ("role", "content"):
        if field not in fields:
            raise ValueError(f"message {index} has no {field!r}; it has {sorted(map(str, item))}")
    if item.get("function_call"):
        raise ValueError(f"message {index} has 'function_call', which is not supported; use 'tool_calls'")
    content = "" if calls and item.get("content") is None else item["content"]
    try:
        return Message(item["role"], content, tool_calls(calls), item.get("tool_call_id") or "")
    except ValueError as error:
        raise ValueError(f"message {index}: {error}") from None


def tool_calls(items: Any) -> tuple[ToolCall, ...]:
    """Calls as chat APIs have them, whose arguments are a JSON text, or as templates do, whose are a mapping."""
    if not isinstance(items, (list, tuple)):
        raise ValueError(f"tool_calls is {_describe(items)}; it must be a list")
    calls = []
    for item in items:
        function = item.get("function") if isinstance(item, Mapping) else None
        if not isinstance(function, Mapping):
            raise ValueError(f'a tool call is {_describe(item)}; it must be {{"function": {{"name", "arguments"}}}}')
        given = function.get("arguments")
        text = json.dumps(given, ensure_ascii=False) if isinstance(given, Mapping) else given
        calls.append(ToolCall(function.get("name", ""), text or "{}", item.get("id") or ""))
    return tuple(calls)


def _with_results(messages: list[Message]) -> Conversation:
    """The messages, each call of a tool followed by its one result."""
    found, place = list[Message](), 0
    while place < len(messages):
        message = messages[place]
        if message.role == "tool":
            raise ValueError(f"message {place} is the result of a tool, and the message before it calls none")
        found.append(message)
        place += 1
        if not message.tool_calls or place == len(messages):
            continue
        calls = [call.id for call in message.tool_calls]
        results = messages[place : place + len(calls)]
        if [each.role for each in results] != ["tool"] * len(calls):
            raise ValueError(f"message {place - 1} calls {len(calls)} tools; a tool message for each must follow it")
        if sorted(each.tool_call_id for each in results) != sorted(calls):
            given = ", ".join(repr(each.tool_call_id) for each in results)
            raise ValueError(
                f"the tool messages after message {place - 1} answer calls {given}; it made "
                f"{', '.join(map(repr, calls))}"
            )
        found += sorted(results, key=lambda result: calls.index(result.tool_call_id))
        place += len(calls)
    return tuple(found)


def _check_alternation(conv: Conversation) -> None:
    for index, message in enumerate(conv):
        if index == 0:
            continue
        if message.role == "system":
            raise ValueError(f"message {index} is a system message; only message 0 may be (roles: {_roles(conv)})")
        if message.role == conv[index - 1].role and message.role != "tool":
            raise ValueError(
                f"two {message.role} turns in a row: messages {index - 1} and {index}; "
                "user and assistant must alternate, so merge the two or drop one"
            )


def _roles(conv: Conversation) -> str:
    return ", ".join(message.role for message in conv)


def _describe(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def printable(text: str) -> str:
    """Return the text without control characters but line ends and tabs: a model must not drive the terminal."""
    return "".join(character for character in text if character in "\n\t" or category(character) != "Cc")
