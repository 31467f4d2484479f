"""Conversations that come from elsewhere, whole: all in one transaction, with the times that they had."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import insert

from chatloom.feedback import tables as t
from chatloom.feedback.database import Database, new_id, now, storable
from chatloom.feedback.records import Conversation, Made, Role


@dataclass(frozen=True, slots=True)
class ComingMessage:
    """A message of a conversation that is to be stored; `parent` is the number of an earlier one, None for a root."""

    parent: int | None
    role: Role
    content: str
    created: float
    made: Made | None = None


@dataclass(frozen=True, slots=True)
class Coming:
    """A conversation that is to be stored."""

    title: str
    system: str
    created: float
    updated: float
    messages: Sequence[ComingMessage]

    def checked(self) -> "Coming":
        """What is stored of it. ValueError unless it can be: turns alternate, the user's first, and texts are text."""
        for index, message in enumerate(self.messages):
            if message.parent is not None and not 0 <= message.parent < index:
                raise ValueError(f"message {index} comes after message {message.parent}, which is not before it")
            before = None if message.parent is None else self.messages[message.parent].role
            if message.role != ("assistant" if before == "user" else "user"):
                raise ValueError(f"message {index} is of the {message.role} and comes after {before}; turns alternate")
        return replace(
            self,
            title=storable(self.title, "the title"),
            system=storable(self.system, "system"),
            messages=[replace(each, content=storable(each.content, "a message")) for each in self.messages],
        )


class Imports(Database):
    """The part of the store that takes whole conversations in."""

    def import_conversation(self, coming: Coming, *, owner: str) -> Conversation | None:
        """Store a conversation under new ids; None if it has no message. ValueError as of `Coming.checked`."""
        return next(iter(self.import_conversations([coming], owner=owner)), None)

    def import_conversations(self, several: Iterable[Coming], *, owner: str) -> list[Conversation]:
        """Store all of them that have a message, in one transaction, or none."""
        prepared = [_rows(coming.checked(), owner) for coming in several if coming.messages]
        with self.writing() as connection:
            for made, messages, records in prepared:
                connection.execute(insert(t.conversations).values(asdict(made)))
                connection.execute(insert(t.messages), messages)
                if records:
                    connection.execute(insert(t.made), records)
        return [made for made, _, _ in prepared]


def _rows(coming: Coming, owner: str) -> tuple[Conversation, list[dict[str, Any]], list[dict[str, Any]]]:
    """A conversation, its messages and how the answers of it were made, as they are stored."""
    made = Conversation(new_id(now()), owner, coming.title, coming.system, coming.created, coming.updated)
    ids: list[str] = []
    rows, records = [], []
    for message in coming.messages:
        ids.append(new_id(now()))
        row: dict[str, Any] = {"id": ids[-1], "conversation": made.id, "role": message.role, "status": "done"}
        row["parent"] = None if message.parent is None else ids[message.parent]
        rows.append(row | {"content": message.content, "created": message.created, "updated": message.created})
        if message.made is not None:
            record = {column.name: getattr(message.made, column.name, None) for column in t.made.c}
            seed = message.made.seed
            records.append(record | {"message": ids[-1], "seed": None if seed is None else str(seed)})
    return made, rows, records
