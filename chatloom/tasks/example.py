"""What a task is made of: an example that carries its own check, and the grade of an answer.

An `Example` is plain data. It can be written as one JSON line next to its prompt, travel through any stage, and
still be graded at the other end.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from chatloom.chat.message import Conversation, conversation, to_dicts


@dataclass(frozen=True)
class Example:
    """A prompt, a perfect answer, and what has to be checked in any answer (`check` is JSON)."""

    id: str
    prompt: Conversation
    category: str
    reference: str
    check: dict[str, Any]

    def to_record(self) -> dict[str, Any]:
        """The example as JSON: {"messages": prompt, "example": {...}}."""
        return {
            "messages": to_dicts(self.prompt),
            "example": {
                "id": self.id,
                "category": self.category,
                "reference": self.reference,
                "check": self.check,
            },
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Example":
        """The inverse of `to_record`. ValueError where a field is missing."""
        details = record.get("example")
        if not isinstance(details, Mapping) or "messages" not in record:
            raise ValueError(
                f'an example needs the fields "messages" and "example"; this record has {sorted(record)}. '
                "Write records with Example.to_record"
            )
        missing = [field for field in ("id", "category", "reference", "check") if field not in details]
        if missing:
            raise ValueError(f'"example" lacks {missing}; it has {sorted(details)}')
        return cls(
            id=details["id"],
            prompt=conversation(record["messages"]),
            category=details["category"],
            reference=details["reference"],
            check=dict(details["check"]),
        )


@dataclass(frozen=True)
class Grade:
    """What an answer is worth: a score (higher is better), whether it follows, and the parts of the score."""

    score: float
    follows: bool
    details: dict[str, float]


class Task(Protocol):
    """Examples that can grade an answer: one file serves SFT data, evaluation and reward."""

    @property
    def name(self) -> str:
        """The name under which `get_task` finds it."""
        ...

    def examples(self, split: str, count: int, seed: int = 0) -> list[Example]:
        """`count` examples of a split: a pure function of its arguments."""
        ...

    def prompt(self, example: Example) -> Conversation:
        """What the model is given."""
        ...

    def grade(self, example: Example, answer: str, *, stopped: bool = True) -> Grade:
        """Judge an answer; `stopped` is False where the model ran into its token limit."""
        ...
