"""The tables as SQLAlchemy sees them. A test holds them equal to what `migrations.py` makes of a database.

Names and types are those that SQLite and PostgreSQL share. Ids are text and grow with time, times are seconds since
1970 (UTC), JSON is text, and tokens are little-endian uint32, compressed: a prompt of 8,000 tokens is about 12 KB.
"""

import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeDecorator


class Json(TypeDecorator[Any]):
    """A JSON value in a text column."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        """Python to database."""
        return None if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        """Database to Python."""
        return None if value is None else json.loads(value)


class Tokens(TypeDecorator[list[int]]):
    """Token numbers, compressed."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Sequence[int] | None, dialect: Any) -> bytes | None:
        """Python to database."""
        return None if value is None else zlib.compress(np.asarray(value, dtype="<u4").tobytes(), 1)

    def process_result_value(self, value: Any, dialect: Any) -> list[int] | None:
        """Database to Python."""
        return None if value is None else np.frombuffer(zlib.decompress(bytes(value)), dtype="<u4").tolist()


metadata = MetaData()


def _of(table: str) -> Column[str]:
    """A column that refers to a row of `table`, and goes with it."""
    return Column(table, Text, ForeignKey(f"{table}s.id", ondelete="CASCADE"), nullable=False)


conversations = Table(
    "conversations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("system", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("updated", Double, nullable=False),
    Index("conversations_of_owner", "owner", "updated"),
)

messages = Table(
    "messages",
    metadata,
    Column("id", Text, primary_key=True),
    _of("conversation"),
    # No cascade: a long conversation is deeper than SQLite's limit of 1,000 triggers; all its messages go at once.
    Column("parent", Text, ForeignKey("messages.id")),
    Column("role", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("updated", Double, nullable=False),
    Column("status", Text, nullable=False),
    Index("messages_of_conversation", "conversation", "created"),
    Index("messages_of_parent", "parent"),
    Index("messages_of_status", "status"),
)

made = Table(
    "made",
    metadata,
    Column("message", Text, ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True),
    Column("model", Text, nullable=False),
    Column("adapter", Text),
    Column("sampling", Json, nullable=False),
    Column("seed", Text),  # decimal: a seed may have all of 64 bits, which neither database's integers hold
    Column("prompt_tokens", Tokens, nullable=False),
    Column("tokens", Tokens, nullable=False),
    Column("finish_reason", Text),
    Column("seconds", Double),
    Column("revision", Text),
    Index("made_by_model", "model"),
)


def _judgement() -> tuple[Column[Any], ...]:
    return (
        Column("id", Text, primary_key=True),
        _of("conversation"),
        Column("rater", Text, nullable=False),
        Column("created", Double, nullable=False),
        Column("consent", Boolean, nullable=False),
    )


ratings = Table(
    "ratings",
    metadata,
    *_judgement(),
    _of("message"),
    Column("value", Integer, nullable=False),
    Column("tags", Json, nullable=False),
    Column("comment", Text, nullable=False),
    UniqueConstraint("message", "rater"),
    Index("ratings_of_conversation", "conversation"),
)

pairs = Table(
    "pairs",
    metadata,
    *_judgement(),
    Column("chosen", Text, ForeignKey("messages.id", ondelete="CASCADE"), nullable=False),
    Column("rejected", Text, ForeignKey("messages.id", ondelete="CASCADE"), nullable=False),
    Column("tie", Boolean, nullable=False),
    Column("comment", Text, nullable=False),
    Column("answers", Text, nullable=False),  # both ids in order, joined: what a rater judges once
    UniqueConstraint("answers", "rater"),
    Index("pairs_of_conversation", "conversation"),
    Index("pairs_of_chosen", "chosen"),
    Index("pairs_of_rejected", "rejected"),
)

rankings = Table(
    "rankings",
    metadata,
    *_judgement(),
    Column("answers", Text, nullable=False),  # all ids in order, joined
    UniqueConstraint("answers", "rater"),
    Index("rankings_of_conversation", "conversation"),
)

ranked = Table(
    "ranked",
    metadata,
    Column("ranking", Text, ForeignKey("rankings.id", ondelete="CASCADE"), primary_key=True),
    Column("message", Text, ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True),
    Column("place", Integer, nullable=False),  # 0 is the best; equal places are a tie
    Index("ranked_of_message", "message"),
)

edits = Table(
    "edits",
    metadata,
    *_judgement(),
    _of("message"),
    Column("text", Text, nullable=False),
    UniqueConstraint("message", "rater"),
    Index("edits_of_conversation", "conversation"),
)

requests = Table(
    "requests",
    metadata,
    Column("id", Text, primary_key=True),
    Column("created", Double, nullable=False),
    Column("path", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("caller", Text, nullable=False),
    Column("model", Text),
    Column("adapter", Text),
    Column("stream", Boolean, nullable=False),
    Column("error", Text),
    Column("finish_reason", Text),
    Column("num_prompt_tokens", BigInteger, nullable=False),
    Column("num_tokens", BigInteger, nullable=False),
    Column("first_token_seconds", Double),
    Column("seconds", Double, nullable=False),
    Index("requests_of_time", "created"),
)

users = Table(
    "users",
    metadata,
    Column("name", Text, primary_key=True),
    Column("role", Text, nullable=False),
    Column("password", Text),  # its scrypt; none: comes by keys only
    Column("created", Double, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("owner", Text, ForeignKey("users.name", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("tokens_per_day", BigInteger),
    Column("concurrent_requests", BigInteger),
    Index("api_keys_of_owner", "owner"),
)

# Of a user, or of whoever signed in with a key: the file's keys are in no table, so nothing is referred to.
sessions = Table(
    "sessions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("holder", Text, nullable=False),
    Column("key", Text),
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=False),
    Index("sessions_of_holder", "holder"),
    Index("sessions_of_time", "expires"),
)

# The tables that hold what people and models said.
TEXTUAL = tuple(each.name for each in (conversations, messages, made, ratings, pairs, rankings, ranked, edits))
