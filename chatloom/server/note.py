"""What is known of the request under way: numbers and names, never text. Its log line and its record are made of it."""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True)
class Note:
    """One request. Whoever handles it fills in what they know."""

    id: str
    created: float = field(default_factory=time.time)  # UTC
    started: float = field(default_factory=time.monotonic)
    method: str = ""
    path: str = ""  # of the route, so that nothing a client made up is in it
    status: int = 0
    caller: str = ""
    model: str | None = None
    adapter: str | None = None
    stream: bool = False
    error: str | None = None  # its code
    finish_reason: str | None = None
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    first_token_seconds: float | None = None
    seconds: float = 0.0


_CURRENT: ContextVar[Note | None] = ContextVar("chatloom_note", default=None)


def current() -> Note | None:
    """Of the request in whose task, or a task it began, this is called."""
    return _CURRENT.get()


def begin(note: Note) -> None:
    """Make it that of this task."""
    _CURRENT.set(note)
