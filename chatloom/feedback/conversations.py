"""Conversations and their messages: a tree, of which every path alternates between the user and the assistant.

So every answer is a training record as it stands. `owner=None` asks as an administrator, who may see everybody's.
"""

import time
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, exists, insert, null, or_, select, update

from chatloom.feedback import tables as t
from chatloom.feedback.database import Database, new_id, now, storable
from chatloom.feedback.records import STATUSES, Conversation, Made, Message, NotFound, Role, Status

_MADE = [column for column in t.made.c if column.name != "message"]
_TOKENS = ("prompt_tokens", "tokens")
_NEEDS = {"user": "assistant", "assistant": "user"}


class Conversations(Database):
    """The part of the store that keeps who said what."""

    # --- conversations ----------------------------------------------------------------------------------------

    def create_conversation(self, *, owner: str = "", title: str = "", system: str = "") -> Conversation:
        """A new conversation, empty."""
        created = now()
        made = Conversation(
            new_id(created), owner, storable(title, "the title"), storable(system, "system"), created, created
        )
        with self.writing() as connection:
            connection.execute(insert(t.conversations).values(asdict(made)))
        return made

    def conversation(self, id: str, *, owner: str | None) -> Conversation:
        """One conversation. Raises NotFound if it is not there or is somebody else's."""
        with self.reading() as connection:
            return _conversation(connection, id, owner)

    def conversations(
        self, *, owner: str | None, search: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[Conversation]:
        """Conversations, the last used first; with `search`, those whose title or messages hold that text."""
        query = select(t.conversations).order_by(t.conversations.c.updated.desc(), t.conversations.c.id.desc())
        if owner is not None:
            query = query.where(t.conversations.c.owner == owner)
        if search:
            said = t.messages.c.conversation == t.conversations.c.id
            query = query.where(
                or_(
                    t.conversations.c.title.icontains(search, autoescape=True),
                    exists().where(said, t.messages.c.content.icontains(search, autoescape=True)),
                )
            )
        with self.reading() as connection:
            return [Conversation(**row._mapping) for row in connection.execute(query.limit(limit).offset(offset))]

    def rename_conversation(self, id: str, title: str, *, owner: str | None) -> Conversation:
        """Give a conversation another title."""
        title = storable(title, "the title")
        with self.writing() as connection:
            _conversation(connection, id, owner)
            here = t.conversations.c.id == id
            connection.execute(update(t.conversations).where(here).values(updated=now(), title=title))
            return _conversation(connection, id, owner)

    def delete_conversation(self, id: str, *, owner: str | None) -> None:
        """Delete a conversation, with its feedback, so that none of its text is left in the database's files."""
        with self.forgetting() as connection:
            _conversation(connection, id, owner)
            connection.execute(delete(t.conversations).where(t.conversations.c.id == id))

    def delete_conversations(self, *, owner: str) -> int:
        """Delete all that one person said, as `delete_conversation` does; how many conversations there were."""
        with self.forgetting() as connection:
            return connection.execute(delete(t.conversations).where(t.conversations.c.owner == owner)).rowcount

    # --- messages ---------------------------------------------------------------------------------------------

    def add_message(
        self,
        conversation: str,
        *,
        parent: str | None,
        role: Role,
        content: str,
        status: Status = "done",
        made: Made | None = None,
    ) -> Message:
        """A new message below `parent` (None: a root). Raises ValueError unless the turns alternate."""
        _check_status(status)
        content = storable(content, "the message")
        with self.writing() as connection:
            _conversation(connection, conversation, None)
            _check_turn(connection, conversation, parent, role)
            created = now()
            row = Message(new_id(created), conversation, parent, role, content, created, created, status, made)
            values = {name: getattr(row, name) for name in t.messages.c.keys()}  # noqa: SIM118
            connection.execute(insert(t.messages).values(values))
            if made is not None:
                _put_made(connection, row.id, made)
            here = t.conversations.c.id == conversation
            connection.execute(update(t.conversations).where(here).values(updated=created))
        return row

    def update_message(
        self, id: str, *, content: str | None = None, status: Status | None = None, made: Made | None = None
    ) -> None:
        """Change what is given: an answer grows, and at its end `made` is whole. Raises NotFound."""
        values: dict[str, Any] = {"updated": now()}
        if content is not None:
            values["content"] = storable(content, "the message")
        if status is not None:
            _check_status(status)
            values["status"] = status
        with self.writing() as connection:
            if not connection.execute(update(t.messages).where(t.messages.c.id == id).values(values)).rowcount:
                raise NotFound(f"there is no message {id!r}")
            if made is not None:
                _put_made(connection, id, made)

    def message(self, id: str, *, owner: str | None = None) -> Message:
        """One message. Raises NotFound if it is not there or is in somebody else's conversation."""
        with self.reading() as connection:
            found = find_message(connection, id)
            _conversation(connection, found.conversation, owner)
            return found

    def messages(self, conversation: str) -> list[Message]:
        """The whole tree, oldest first: a parent comes before its children."""
        with self.reading() as connection:
            return tree(connection, conversation)

    def path(self, id: str) -> list[Message]:
        """The messages from the root to this one."""
        with self.reading() as connection:
            here = find_message(connection, id)
            return path_in({each.id: each for each in tree(connection, here.conversation)}, id)

    def stop_abandoned(self, *, older_than_seconds: float = 60.0) -> int:
        """Mark as stopped the answers that no server has added to for so long; how many there were."""
        running = t.messages.c.status == "running"
        query = update(t.messages).where(running, t.messages.c.updated < time.time() - older_than_seconds)
        with self.writing() as connection:
            return connection.execute(query.values(status="stopped")).rowcount


# --- within a transaction -----------------------------------------------------------------------------------------


def _conversation(connection: Connection, id: str, owner: str | None) -> Conversation:
    row = connection.execute(select(t.conversations).where(t.conversations.c.id == id)).one_or_none()
    if row is None or owner not in (None, row.owner):
        raise NotFound(f"there is no conversation {id!r}")
    return Conversation(**row._mapping)


def _messages(*, tokens: bool = True) -> Select[Any]:
    made = [column if tokens or column.name not in _TOKENS else null().label(column.name) for column in _MADE]
    return select(t.messages, *made).outerjoin(t.made, t.made.c.message == t.messages.c.id)


def tree(connection: Connection, *conversations: str, tokens: bool = True) -> list[Message]:
    """Every message of these conversations, oldest first; without `tokens` they are left where they are."""
    query = _messages(tokens=tokens).where(t.messages.c.conversation.in_(conversations))
    return [_message(row) for row in connection.execute(query.order_by(t.messages.c.created, t.messages.c.id))]


def find_message(connection: Connection, id: str) -> Message:
    """One message. Raises NotFound."""
    row = connection.execute(_messages().where(t.messages.c.id == id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no message {id!r}")
    return _message(row)


def path_in(messages: dict[str, Message], id: str) -> list[Message]:
    """The messages from the root to `id`, out of a conversation's messages by id."""
    found: list[Message] = []
    at: str | None = id
    while at is not None:
        found.append(messages[at])
        at = messages[at].parent
    return found[::-1]


def _message(row: Row[Any]) -> Message:
    values = dict(row._mapping)
    parts = {column.name: values.pop(column.name) for column in _MADE}
    if parts["model"] is None:
        return Message(**values)
    seed = parts.pop("seed")
    parts |= {name: parts[name] or [] for name in _TOKENS}
    return Message(**values, made=Made(**parts, seed=None if seed is None else int(seed)))


def _put_made(connection: Connection, message: str, made: Made) -> None:
    values = {name: getattr(made, name) for name in (column.name for column in _MADE)}
    values["seed"] = None if made.seed is None else str(made.seed)
    connection.execute(delete(t.made).where(t.made.c.message == message))
    connection.execute(insert(t.made).values(message=message, **values))


def _check_turn(connection: Connection, conversation: str, parent: str | None, role: str) -> None:
    """ValueError unless a message of this role may come below `parent`."""
    if role not in _NEEDS:
        raise ValueError(
            f"the role is {role!r}; it must be user or assistant (a system message is the conversation's own)"
        )
    if parent is None:
        if role != "user":
            raise ValueError("a conversation begins with a message of the user")
        return
    query = select(t.messages.c.role, t.messages.c.conversation).where(t.messages.c.id == parent)
    found = connection.execute(query).one_or_none()
    if found is None or found.conversation != conversation:
        raise NotFound(f"there is no message {parent!r} in this conversation")
    if found.role != _NEEDS[role]:
        raise ValueError(f"a message of the {role} comes after one of the {_NEEDS[role]}, and the parent is not one")


def _check_status(status: str) -> None:
    if status not in STATUSES:
        raise ValueError(f"the status is {status!r}; it must be one of {', '.join(STATUSES)}")
