"""Messages and conversations: who said what, checked once where text enters Chatloom.

A conversation is a plain tuple of messages, so it is hashable, cheap to slice and never changes under a reader.
It is an optional system message followed by turns of the user and the assistant in alternation. `conversation`
holds that shape for everything (prompts, demonstrations, a chat in progress); `check_trainable` asks in addition
for what a demonstration needs: something that the assistant says in answer to something.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args
from unicodedata import category

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)

# Fields of the OpenAI format that carry meaning we would lose by reading `content` alone.
_UNSUPPORTED_FIELDS = ("tool_calls", "function_call")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: `role` is one of ROLES, `content` its plain text. Any other role or type is a ValueError."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"the role is {self.role!r}; it must be one of {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            raise ValueError(
                f"the content of the {self.role} message is {_describe(self.content)}; it must be a string"
            )


Conversation = tuple[Message, ...]


def conversation(items: Iterable[Mapping[str, Any] | Message]) -> Conversation:
    """Build a conversation from messages or {"role", "content"} mappings.

    An empty iterable gives an empty conversation. Raises ValueError, naming the index of the message and what is
    allowed, for a missing field, an unknown role, content that is not a string, a system message that is not
    first, and two turns of one role in a row.
    """
    if isinstance(items, (str, bytes, Mapping)):
        raise ValueError(
            f'a conversation is a list of messages such as {{"role": "user", "content": "..."}}, '
            f"and what was given is {_describe(items)}"
        )
    messages = tuple(_message(item, index) for index, item in enumerate(items))
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
        if not message.content.strip():
            raise ValueError(f"message {index} ({message.role}) is empty; give it text or leave the conversation out")


def to_dicts(conv: Iterable[Message]) -> list[dict[str, str]]:
    """Return the conversation as the list of {"role", "content"} that templates, JSON and OpenAI clients use."""
    return [{"role": message.role, "content": message.content} for message in conv]


def _message(item: Mapping[str, Any] | Message, index: int) -> Message:
    if isinstance(item, Message):
        return item
    if not isinstance(item, Mapping):
        raise ValueError(f'message {index} is {_describe(item)}; it must be {{"role": ..., "content": ...}}')
    for field in ("role", "content"):
        if field not in item:
            raise ValueError(f"message {index} has no {field!r}; it has {sorted(map(str, item))}")
    for field in _UNSUPPORTED_FIELDS:
        if item.get(field):
            raise ValueError(f"message {index} has {field!r}, which is not supported; use text messages alone")
    try:
        return Message(role=item["role"], content=item["content"])
    except ValueError as error:
        raise ValueError(f"message {index}: {error}") from None


def _check_alternation(conv: Conversation) -> None:
    for index, message in enumerate(conv):
        if index == 0:
            continue
        if message.role == "system":
            raise ValueError(f"message {index} is a system message; only message 0 may be (roles: {_roles(conv)})")
        if message.role == conv[index - 1].role:
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
