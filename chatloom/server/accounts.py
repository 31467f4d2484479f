"""Who may come in: users with roles, their sessions and API keys, in the store's database; and the operator's key file.

At rest there are only hashes: scrypt of passwords, SHA-256 of session tokens and keys, which are 256 random bits and so
need no salt. A row is found by the first digits of its digest and compared in constant time by the whole. Nothing is
remembered between calls, so what one process takes away is gone in all.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from chatloom.feedback.database import Database
from chatloom.feedback.tables import api_keys, conversations, sessions, users
from chatloom.server import passwords
from chatloom.server.key_file import FileKey, KeyFile
from chatloom.server.limits import NO_LIMITS, Limits

ROLES = ("admin", "labeler", "user")
# What a role may do beyond talking, and seeing and rating its own answers, which all may. Nobody opens or rates those
# of others.
PERMISSIONS: dict[str, tuple[str, ...]] = {
    "rate_others": ("admin", "labeler"),  # see in /api/loop a few examples of what others said and judged
    "read_requests": ("admin",),  # the log of past requests
    "read_metrics": ("admin",),
    "manage_accounts": ("admin",),
}
SESSION_SECONDS = 14 * 86_400.0
_PREFIX = "sk-chatloom-"
_NAME = re.compile(r"(?!key-|file-)[a-z0-9][a-z0-9._@+-]{0,63}")


@dataclass(frozen=True)
class User:
    """A person, or a program that has keys only."""

    name: str
    role: str
    created: float
    has_password: bool


@dataclass(frozen=True)
class Key:
    """An API key without the key: `id` tells it from others, `owner` is whose conversations it has."""

    id: str
    name: str
    owner: str
    role: str
    limits: Limits
    created: float | None = None


@dataclass(frozen=True)
class Principal:
    """Who asks: `name` owns what is made ("" on one's own machine), `key` is what they came with, if it was one."""

    name: str
    role: str
    key: Key | None = None

    def may(self, permission: str) -> bool:
        """Whether the role has it."""
        return self.role in PERMISSIONS[permission]


LOCAL = Principal("", "admin")


class Accounts:
    """Users, sessions and keys. Synchronous and thread-safe; ValueError with a sentence for what cannot be.

    Without a database there are the file's keys only, and nobody can sign in.
    """

    def __init__(
        self, database: Database | None, key_file: KeyFile | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._at, self._key_file, self._clock = database, key_file, clock

    @property
    def _database(self) -> Database:
        if self._at is None:
            raise ValueError("this server has no database, so it has no users and nobody signs in")
        return self._at

    def demanded(self) -> bool:
        """Whether people must say who they are: there is a user or a key file."""
        if self._key_file is not None or self._at is None:
            return self._key_file is not None
        with self._database.reading() as connection:
            return connection.execute(select(users.c.name).limit(1)).first() is not None

    # --- users ----------------------------------------------------------------------------------------------------

    def users(self) -> list[User]:
        """All, by name."""
        with self._database.reading() as connection:
            return [_user(row) for row in connection.execute(select(users).order_by(users.c.name))]

    def add_user(self, name: str, *, password: str | None, role: str = "user") -> User:
        """A new user; without a password, one who comes by keys only.

        Not one of the name of somebody removed whose conversations were kept: they would be the new user's.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name[:80]!r} cannot be a user's name: 1 to 64 of a-z, 0-9 and ._@+-, beginning with a letter or "
                "digit, and not with key- or file-"
            )
        if role not in ROLES:
            raise ValueError(f"role is {role!r}; it is one of {', '.join(ROLES)}")
        stored = None if password is None else passwords.hashed(password)
        created = self._clock()
        try:
            with self._database.writing() as connection:
                owned = select(conversations.c.id).where(conversations.c.owner == name).limit(1)
                known = select(users.c.name).where(users.c.name == name)
                if connection.execute(owned).first() and not connection.execute(known).first():
                    raise ValueError(
                        f"there are conversations of {name!r}, who is no user (kept at a removal, or of a key file's "
                        f"line), and they would be the new user's; take another name, or delete them: `remove {name}`"
                    )
                connection.execute(insert(users).values(name=name, role=role, password=stored, created=created))
        except IntegrityError:
            raise ValueError(f"there is a user {name!r} already; `set-password` changes the password") from None
        return User(name, role, created, stored is not None)

    def set_password(self, name: str, password: str) -> None:
        """Another password; who was signed in with the old one is signed out."""
        stored = passwords.hashed(password)
        with self._database.writing() as connection:
            if not connection.execute(update(users).where(users.c.name == name).values(password=stored)).rowcount:
                raise ValueError(f"there is no user {name!r}")
            connection.execute(delete(sessions).where(sessions.c.holder == name))

    def remove_user(self, name: str, *, keep_conversations: bool = False) -> None:
        """Take a user away, with sessions and keys, and with all that they said and judged unless it is kept.

        What was kept is for exports; a second call deletes it. Raises OSError if traces of text could not be erased.
        """
        with self._database.writing() if keep_conversations else self._database.forgetting() as connection:
            found = connection.execute(delete(users).where(users.c.name == name)).rowcount
            for table, column in ((sessions, sessions.c.holder), (api_keys, api_keys.c.owner)):
                connection.execute(delete(table).where(column == name))
            if not keep_conversations:
                found += connection.execute(delete(conversations).where(conversations.c.owner == name)).rowcount
            if not found:
                raise ValueError(f"there is no user {name!r}")

    def authenticate(self, name: str, password: str) -> Principal | None:
        """Who has this name and password; an unknown name takes as long as a wrong password."""
        row = None
        if _NAME.fullmatch(name):
            with self._database.reading() as connection:
                row = connection.execute(select(users).where(users.c.name == name)).first()
        right = passwords.matches(password, None if row is None else row.password)
        return Principal(row.name, row.role) if row is not None and right else None

    # --- API keys -------------------------------------------------------------------------------------------------

    def keys(self) -> list[Key]:
        """Those of the database, then those of the file."""
        statement = select(api_keys, users.c.role).join(users, users.c.name == api_keys.c.owner)
        with self._database.reading() as connection:
            rows = connection.execute(statement.order_by(api_keys.c.created)).all()
        return [_key(row) for row in rows] + [
            _of_file(key) for key in (self._key_file.keys() if self._key_file else ())
        ]

    def add_key(self, owner: str, *, name: str = "", limits: Limits = NO_LIMITS) -> tuple[str, Key]:
        """A new key of a user: the key itself, which is not kept and cannot be shown again, and what is kept."""
        if len(name) > 64:
            raise ValueError(f"a key's name has at most 64 characters; this one has {len(name)}")
        secret = _PREFIX + secrets.token_urlsafe(32)
        digest, created = _digest(secret), self._clock()
        id = f"key-{digest[:12]}"
        row = {"id": id, "digest": digest, "owner": owner, "name": name, "created": created, **asdict(limits)}
        with self._database.writing() as connection:
            role = connection.execute(select(users.c.role).where(users.c.name == owner)).scalar()
            if role is None:
                raise ValueError(f"there is no user {owner!r} to own the key; add the user first")
            connection.execute(insert(api_keys).values(row))
        return secret, Key(id, name or id, owner, role, limits, created)

    def remove_key(self, id: str) -> None:
        """Take a key away; it is refused from its next request on, and whoever signed in with it is signed out."""
        if id.startswith("file-"):
            raise ValueError(f"{id} is a line of the API key file; delete it there")
        with self._database.writing() as connection:
            connection.execute(delete(sessions).where(sessions.c.key == id))
            if not connection.execute(delete(api_keys).where(api_keys.c.id == id)).rowcount:
                raise ValueError(f"there is no key {id!r}; `list` shows them")

    def holder(self, secret: str) -> Principal | None:
        """Who has this key."""
        if self._key_file is not None and (line := self._key_file.find(secret)) is not None:
            return _comes_with(_of_file(line))
        if self._at is None:
            return None
        digest = _digest(secret)
        row = self._key_row(f"key-{digest[:12]}")
        return _comes_with(_key(row)) if row is not None and hmac.compare_digest(row.digest, digest) else None

    def _key_row(self, id: str) -> Row[Any] | None:
        statement = select(api_keys, users.c.role).join(users, users.c.name == api_keys.c.owner)
        with self._database.reading() as connection:
            return connection.execute(statement.where(api_keys.c.id == id)).first()

    # --- sessions -------------------------------------------------------------------------------------------------

    def open_session(self, principal: Principal) -> str:
        """A token for a cookie that stands for this principal, for `SESSION_SECONDS`."""
        token, now = secrets.token_urlsafe(32), self._clock()
        key = None if principal.key is None else principal.key.id
        row = {"id": _digest(token)[:16], "digest": _digest(token), "holder": principal.name, "key": key}
        with self._database.writing() as connection:
            connection.execute(delete(sessions).where(sessions.c.expires <= now))
            connection.execute(insert(sessions).values(**row, created=now, expires=now + SESSION_SECONDS))
        return token

    def session(self, token: str) -> Principal | None:
        """Who signed in with this token, if they still may: not once it has expired or their key or name is gone."""
        if self._at is None:
            return None
        digest = _digest(token)
        with self._database.reading() as connection:
            row = connection.execute(select(sessions).where(sessions.c.id == digest[:16])).first()
            if row is None or not hmac.compare_digest(row.digest, digest) or row.expires <= self._clock():
                return None
            if row.key is None:
                role = connection.execute(select(users.c.role).where(users.c.name == row.holder)).scalar()
                return None if role is None else Principal(row.holder, role)
        if row.key.startswith("file-"):
            line = None if self._key_file is None else self._key_file.with_id(row.key)
            return None if line is None else _comes_with(_of_file(line))
        found = self._key_row(row.key)
        return None if found is None else _comes_with(_key(found))

    def close_session(self, token: str) -> None:
        """Sign out."""
        with self._database.writing() as connection:
            connection.execute(delete(sessions).where(sessions.c.id == _digest(token)[:16]))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _user(row: Row[Any]) -> User:
    return User(row.name, row.role, row.created, row.password is not None)


def _key(row: Row[Any]) -> Key:
    limits = Limits(**{field.name: getattr(row, field.name) for field in fields(Limits)})
    return Key(row.id, row.name or row.id, row.owner, row.role, limits, row.created)


def _of_file(line: FileKey) -> Key:
    return Key(line.id, line.name, line.name, line.role, line.limits)


def _comes_with(key: Key) -> Principal:
    return Principal(key.owner, key.role, key)
