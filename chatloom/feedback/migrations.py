"""How a database comes to have its tables: a list of steps, of which the first n make version n.

A step that has been released is never changed; what must change is a new step at the end. The SQL is literal, and what
both SQLite and PostgreSQL read (`{bytes}` is the one type whose name differs). All steps that a database lacks run in
one transaction, so a kill in the middle leaves it as it was. `tests/feedback/schemas/` keeps what each version is.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, inspect, text


@dataclass(frozen=True, slots=True)
class Step:
    """What one version adds."""

    adds: str
    statements: tuple[str, ...]


_JUDGEMENT = """\
    id TEXT NOT NULL PRIMARY KEY,
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    rater TEXT NOT NULL,
    created DOUBLE PRECISION NOT NULL,
    consent BOOLEAN NOT NULL,"""

STEPS: tuple[Step, ...] = (
    Step(
        "conversations and feedback",
        (
            """CREATE TABLE conversations (
    id TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL,
    title TEXT NOT NULL,
    system TEXT NOT NULL,
    created DOUBLE PRECISION NOT NULL,
    updated DOUBLE PRECISION NOT NULL
)""",
            "CREATE INDEX conversations_of_owner ON conversations (owner, updated)",
            """CREATE TABLE messages (
    id TEXT NOT NULL PRIMARY KEY,
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    parent TEXT REFERENCES messages (id),
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    created DOUBLE PRECISION NOT NULL,
    updated DOUBLE PRECISION NOT NULL,
    status TEXT NOT NULL
)""",
            "CREATE INDEX messages_of_conversation ON messages (conversation, created)",
            "CREATE INDEX messages_of_parent ON messages (parent)",
            "CREATE INDEX messages_of_status ON messages (status)",
            """CREATE TABLE made (
    message TEXT NOT NULL PRIMARY KEY REFERENCES messages (id) ON DELETE CASCADE,
    model TEXT NOT NULL,
    adapter TEXT,
    sampling TEXT NOT NULL,
    seed TEXT,
    prompt_tokens {bytes} NOT NULL,
    tokens {bytes} NOT NULL,
    finish_reason TEXT,
    seconds DOUBLE PRECISION,
    revision TEXT
)""",
            "CREATE INDEX made_by_model ON made (model)",
            f"""CREATE TABLE ratings (
{_JUDGEMENT}
    message TEXT NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    value INTEGER NOT NULL,
    tags TEXT NOT NULL,
    comment TEXT NOT NULL,
    UNIQUE (message, rater)
)""",
            "CREATE INDEX ratings_of_conversation ON ratings (conversation)",
            f"""CREATE TABLE pairs (
{_JUDGEMENT}
    chosen TEXT NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    rejected TEXT NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    tie BOOLEAN NOT NULL,
    comment TEXT NOT NULL,
    answers TEXT NOT NULL,
    UNIQUE (answers, rater)
)""",
            "CREATE INDEX pairs_of_conversation ON pairs (conversation)",
            "CREATE INDEX pairs_of_chosen ON pairs (chosen)",
            "CREATE INDEX pairs_of_rejected ON pairs (rejected)",
            f"""CREATE TABLE rankings (
{_JUDGEMENT}
    answers TEXT NOT NULL,
    UNIQUE (answers, rater)
)""",
            "CREATE INDEX rankings_of_conversation ON rankings (conversation)",
            """CREATE TABLE ranked (
    ranking TEXT NOT NULL REFERENCES rankings (id) ON DELETE CASCADE,
    message TEXT NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    place INTEGER NOT NULL,
    PRIMARY KEY (ranking, message)
)""",
            "CREATE INDEX ranked_of_message ON ranked (message)",
            f"""CREATE TABLE edits (
{_JUDGEMENT}
    message TEXT NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    text TEXT NOT NULL,
    UNIQUE (message, rater)
)""",
            "CREATE INDEX edits_of_conversation ON edits (conversation)",
        ),
    ),
    Step(
        "past requests",
        (
            """CREATE TABLE requests (
    id TEXT NOT NULL PRIMARY KEY,
    created DOUBLE PRECISION NOT NULL,
    path TEXT NOT NULL,
    status INTEGER NOT NULL,
    caller TEXT NOT NULL,
    model TEXT,
    adapter TEXT,
    stream BOOLEAN NOT NULL,
    error TEXT,
    finish_reason TEXT,
    num_prompt_tokens BIGINT NOT NULL,
    num_tokens BIGINT NOT NULL,
    first_token_seconds DOUBLE PRECISION,
    seconds DOUBLE PRECISION NOT NULL
)""",
            "CREATE INDEX requests_of_time ON requests (created)",
        ),
    ),
    Step(
        "accounts",
        (
            """CREATE TABLE users (
    name TEXT NOT NULL PRIMARY KEY,
    role TEXT NOT NULL,
    password TEXT,
    created DOUBLE PRECISION NOT NULL
)""",
            """CREATE TABLE api_keys (
    id TEXT NOT NULL PRIMARY KEY,
    digest TEXT NOT NULL,
    owner TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
    name TEXT NOT NULL,
    created DOUBLE PRECISION NOT NULL,
    requests_per_minute BIGINT,
    tokens_per_minute BIGINT,
    tokens_per_day BIGINT,
    concurrent_requests BIGINT
)""",
            "CREATE INDEX api_keys_of_owner ON api_keys (owner)",
            """CREATE TABLE sessions (
    id TEXT NOT NULL PRIMARY KEY,
    digest TEXT NOT NULL,
    holder TEXT NOT NULL,
    key TEXT,
    created DOUBLE PRECISION NOT NULL,
    expires DOUBLE PRECISION NOT NULL
)""",
            "CREATE INDEX sessions_of_holder ON sessions (holder)",
            "CREATE INDEX sessions_of_time ON sessions (expires)",
        ),
    ),
)
VERSION = len(STEPS)
_VERSION_TABLE = "chatloom_version"
_LOCK = 0x63686174  # "chat": PostgreSQL's name for the one who migrates


def version_of(connection: Connection) -> int | None:
    """The version of a database, 0 for an empty one, None for one that is not Chatloom's."""
    names = inspect(connection).get_table_names()
    if _VERSION_TABLE in names:
        return int(connection.execute(text(f"SELECT version FROM {_VERSION_TABLE}")).scalar_one())
    return None if names else 0


def migrate(connection: Connection, place: str, *, to: int | None = None) -> None:
    """Bring a database to version `to` (None: the newest), within the writing transaction of `connection`.

    Raises ValueError for a database of a newer version and for one that is not Chatloom's; `place` names it.
    """
    to = VERSION if to is None else to
    on_sqlite = connection.dialect.name == "sqlite"
    if not on_sqlite:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    version = version_of(connection)
    if version is None:
        raise ValueError(
            f"{place}: this database holds tables, but not Chatloom's, so it is another program's; "
            "give --database a new name"
        )
    if version > VERSION:
        raise ValueError(
            f"{place}: this database is of version {version}, and this Chatloom knows {VERSION}; "
            "update Chatloom, or give --database another name"
        )
    if version >= to:
        return
    for step in STEPS[version:to]:
        for statement in step.statements:
            connection.execute(text(statement.format(bytes="BLOB" if on_sqlite else "BYTEA")))
    if version == 0:
        connection.execute(text(f"CREATE TABLE {_VERSION_TABLE} (version INTEGER NOT NULL)"))
        connection.execute(text(f"INSERT INTO {_VERSION_TABLE} VALUES (:version)"), {"version": to})
    else:
        connection.execute(text(f"UPDATE {_VERSION_TABLE} SET version = :version"), {"version": to})
