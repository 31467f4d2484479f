"""What the store holds, as frozen records: a conversation is a tree of messages, and feedback judges its answers.

The stored record is the training record: an answer keeps the exact tokens of its prompt and of itself, and the model,
adapter, sampling and seed that made it, so that a later stage never has to render or guess anything again.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from chatloom.chat import message as chat

Role = Literal["user", "assistant"]
Status = Literal["running", "done", "stopped", "failed"]
Kind = Literal["rating", "pair", "ranking", "edit"]
ROLES: tuple[str, ...] = get_args(Role)
STATUSES: tuple[str, ...] = get_args(Status)
KINDS: tuple[Kind, ...] = get_args(Kind)


class NotFound(ValueError):
    """What was asked for is not there, or belongs to somebody else: the two look the same from outside."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A tree of messages. `owner` is a user's name, "" for the one local person; times are seconds since 1970, UTC."""

    id: str
    owner: str
    title: str
    system: str
    created: float
    updated: float


@dataclass(frozen=True, slots=True)
class Made:
    """How an answer came to be. `revision` tells two models of one name apart; None where it is not known."""

    model: str
    adapter: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    prompt_tokens: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    seconds: float | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One node of a conversation's tree; the children of one parent are its branches. A root's parent is None."""

    id: str
    conversation: str
    parent: str | None
    role: Role
    content: str
    created: float
    updated: float
    status: Status = "done"
    made: Made | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What every kind of feedback has: who said it, when, may it be trained on, and what the answers answered."""

    id: str
    conversation: str
    rater: str
    created: float
    consent: bool
    prompt: chat.Conversation


@dataclass(frozen=True, slots=True)
class Rating(Judgement):
    """A thumb: `value` is +1 or -1."""

    answer: Message
    value: int
    tags: tuple[str, ...] = ()
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Pair(Judgement):
    """Two answers to one prompt, of which one is better; where `tie`, neither is."""

    chosen: Message
    rejected: Message
    tie: bool = False
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Ranking(Judgement):
    """Answers to one prompt, best first; those of one group are equally good."""

    groups: tuple[tuple[Message, ...], ...]


@dataclass(frozen=True, slots=True)
class Edit(Judgement):
    """What an answer should have been."""

    answer: Message
    text: str


Feedback = Rating | Pair | Ranking | Edit
RECORDS: dict[Kind, type[Any]] = {"rating": Rating, "pair": Pair, "ranking": Ranking, "edit": Edit}


def kind_of(judgement: Feedback) -> Kind:
    """The name of a judgement's kind."""
    return next(kind for kind, record in RECORDS.items() if isinstance(judgement, record))


def answers_of(judgement: Feedback) -> list[Message]:
    """The answers that were judged, best first where that was said."""
    if isinstance(judgement, Pair):
        return [judgement.chosen, judgement.rejected]
    if isinstance(judgement, Ranking):
        return [answer for group in judgement.groups for answer in group]
    return [judgement.answer]


@dataclass(frozen=True, slots=True)
class PastRequest:
    """A request that the API answered: never its text. `caller` is the name of a key or a user."""

    id: str
    created: float
    path: str
    status: int
    caller: str = ""
    model: str | None = None
    adapter: str | None = None
    stream: bool = False
    error: str | None = None
    finish_reason: str | None = None
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    first_token_seconds: float | None = None
    seconds: float = 0.0
