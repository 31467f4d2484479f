"""What the writers of instructions share: the draft of an example, and frames that turn one request into many.

A writer is a function `Random -> Draft`. Its `key` names content and phrasing; the split is drawn from it. The
fields of `check` are those of `miniature_grading` and are explained there.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from chatloom.chat.message import Conversation, Message

# A request is an imperative without capital or full stop: "write a story about ...".
FRAMES = (
    "{I}.",
    "Please {i}.",
    "Can you {i}?",
    "{I}, please.",
    "I want you to {i}.",
    "Could you {i}?",
    "I need your help: {i}.",
    "Hello! {I}.",
)


@dataclass(frozen=True)
class Draft:
    """An instruction and its perfect answer before style: no courtesy in `body` yet."""

    key: str
    prompt: str | Conversation
    body: str
    check: dict[str, Any] = field(default_factory=dict)

    def messages(self) -> Conversation:
        """The prompt as a conversation."""
        return (Message("user", self.prompt),) if isinstance(self.prompt, str) else self.prompt


Writer = Callable[[random.Random], Draft]


def ask(source: random.Random, requests: Sequence[str], **slots: str) -> tuple[str, str]:
    """Fill one of the requests and frame it; returns the text and the name of the phrasing."""
    request, frame = source.randrange(len(requests)), source.randrange(len(FRAMES))
    return framed(requests[request].format(**slots), frame), f"{request}.{frame}"


def framed(request: str, frame: int) -> str:
    """A request in one of the FRAMES."""
    return FRAMES[frame].format(i=request, I=request[0].upper() + request[1:])


def over_text(source: random.Random, requests: Sequence[str], text: str, **slots: str) -> tuple[str, str]:
    """A request about a text that is given: "<request>: <text>" or "<text> <framed request>"."""
    request = source.randrange(len(requests))
    filled = requests[request].format(**slots)
    if source.random() < 0.7:
        opening = source.choice(("", "Please ", "Now "))
        filled = f"{opening}{filled}"
        return f"{filled[0].upper()}{filled[1:]}: {text}", f"{request}.before{opening.strip()}"
    frame = source.randrange(len(FRAMES) - 1)
    return f"{text} {framed(filled, frame)}", f"{request}.after{frame}"
