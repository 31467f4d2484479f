"""Conversations that come from elsewhere, whole: each in one transaction, with the times that they had."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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

    def check(self) -> None:
        """Raise ValueError unless the turns of every branch alternate, the user's first."""
        for index, message in enumerate(self.messages):
            if message.parent is not None and not 0 <= message.parent < index:
                raise ValueError(f"message {index} comes after message {message.parent}, which is not before it")
            before = None if message.parent is None else self.messages[message.parent].role
            if message.role != ("assistant" if before == "user" else "user"):
                raise ValueError(f"message {index} is of the {message.role} and comes after {before}; turns alternate")


class Imports(Database):
    """The part of the store that takes whole conversations in."""

    def import_conversation(self, coming: Coming, *, owner: str) -> Conversation | None:
        """Store a conversation under new ids; None if it has no message. ValueError unless its turns alternate."""
        coming.check()
        if not coming.messages:
            return None
        made = Conversation(
            new_id(now()),
            owner,
            storable(coming.title, "the title"),
            storable(coming.system, "system"),
            coming.created,
            coming.updated,
        )
        ids: list[str] = []
        rows, records = [], []
        for message in coming.messages:
            ids.append(new_id(now()))
            row: dict[str, Any] = {"id": ids[-1], "conversation": made.id, "role": message.role, "status": "done"}
            row["parent"] = None if message.parent is None else ids[message.parent]
            row["content"] = storable(message.content, "a message")
            rows.append(row | {"created": message.created, "updated": message.created})
            if message.made is not None:
                record = {column.name: getattr(message.made, column.name, None) for column in t.made.c}
                seed = message.made.seed
                records.append(record | {"message": ids[-1], "seed": None if seed is None else str(seed)})
        with self.writing() as connection:
            connection.execute(insert(t.conversations).values(asdict(made)))
            connection.execute(insert(t.messages), rows)
            if records:
                connection.execute(insert(t.made), records)
        return made
