"""What the writers of instructions share: the draft of an example, and frames that turn one request into many.

A writer is a function `Random -> Draft`. The split is drawn from the text of its prompt, which is content in a
phrasing, so that no prompt is in two splits; a prompt of several turns names a `key` instead. The fields of `check`
are those of `miniature_grading` and are explained there.
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

    prompt: str | Conversation
    body: str
    check: dict[str, Any] = field(default_factory=dict)
    key: str | None = None  # what the split is drawn from; None: the text of a prompt of one turn

    def split_key(self) -> str:
        """What the split is drawn from."""
        if self.key is not None:
            return self.key
        assert isinstance(self.prompt, str), "a prompt of several turns needs a key"
        return self.prompt

    def messages(self) -> Conversation:
        """The prompt as a conversation."""
        return (Message("user", self.prompt),) if isinstance(self.prompt, str) else self.prompt


Writer = Callable[[random.Random], Draft]


def ask(source: random.Random, requests: Sequence[str], **slots: str) -> str:
    """Fill one of the requests and frame it."""
    return framed(source.choice(requests).format(**slots), source.randrange(len(FRAMES)))


def framed(request: str, frame: int) -> str:
    """A request in one of the FRAMES."""
    return FRAMES[frame].format(i=request, I=request[0].upper() + request[1:])


def over_text(source: random.Random, requests: Sequence[str], text: str, **slots: str) -> str:
    """A request about a text that is given: "<request>: <text>" or "<text> <framed request>"."""
    request = source.choice(requests).format(**slots)
    if source.random() < 0.7:
        opening = source.choice(("", "Please ", "Now "))
        return f"{(opening + request)[0].upper()}{(opening + request)[1:]}: {text}"
    return f"{text} {framed(request, source.randrange(len(FRAMES) - 1))}"
