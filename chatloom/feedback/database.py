"""The database beneath the store: opened, brought up to date, and its errors put into words.

* SQLite by default. WAL with `synchronous=FULL`: a row whose write has returned survives a kill and a power cut. Freed
  pages are overwritten (`secure_delete`), and the file is the owner's alone (0600).
* One process writes at a time (SQLite) and waits up to BUSY_SECONDS for another; readers never wait. Nothing is kept
  in memory between calls, so several servers may share a database.
* PostgreSQL by URL, through psycopg.
"""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, Self

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, StatementError

from chatloom.feedback import migrations
from chatloom.feedback.tables import TEXTUAL

BUSY_SECONDS = 30.0
_SQLITE_MAGIC = b"SQLite format 3\0"
_HAS_TRACES = 1  # SQLite's user_version, which it leaves to its users
_TRACES = (
    "What was deleted is gone from the conversations, but traces of its bytes may be in the file; they go when "
    "something is deleted or the database is opened again"
)
_clock = threading.Lock()
_last = 0


class Database:
    """An open database. Every method is synchronous and may be called from any thread."""

    def __init__(self, engine: Engine, place: str) -> None:
        self.engine = engine
        self.place = place
        self.on_sqlite = engine.dialect.name == "sqlite"
        self._writer = engine.execution_options(writing=True)
        self._when_forgotten: list[Callable[[], object]] = []
        # Threads of one process take turns here, in order, instead of polling SQLite's lock.
        self._turn: AbstractContextManager[Any] = threading.Lock() if self.on_sqlite else nullcontext()

    @classmethod
    def open(cls, location: str | Path) -> Self:
        """Open the database at a path ("feedback.db") or URL, made if it is not there, and bring it up to date.

        Raises ValueError for a file that is no database, another program's database, one of a newer version, and a
        server that cannot be reached; OSError for a full disk.
        """
        url = _url(location)
        # Errors go to logs, and what people said does not.
        options: dict[str, Any] = {"pool_size": 8, "max_overflow": 56, "hide_parameters": True}
        if url.get_backend_name() == "sqlite":
            _check_file(Path(url.database or ""))
            engine = create_engine(url, **options)
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        else:
            engine = create_engine(url, **options, pool_pre_ping=True)
        on_file = engine.dialect.name == "sqlite"
        database = cls(engine, str(url.database) if on_file else url.render_as_string(hide_password=True))
        try:
            database._migrate()
        except BaseException:
            engine.dispose()
            raise
        return database

    def _migrate(self) -> None:
        with self.reading() as connection:
            current = migrations.version_of(connection) == migrations.VERSION
        if not current:
            with self.writing() as connection:
                migrations.migrate(connection, self.place)
        if self.on_sqlite:
            with self.reading() as connection:
                traces = connection.execute(text("PRAGMA user_version")).scalar_one() == _HAS_TRACES
            if traces:
                with suppress(OSError):  # somebody reads, or the disk is full: they are still remembered
                    self._erase()

    def close(self) -> None:
        """Give the connections back. The last one to close a SQLite database folds its log into the file."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database."""
        with self._in_words(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes: when the block ends well all of it is kept, for good; else nothing is."""
        with self._in_words(), self._turn, self._writer.begin() as connection:
            yield connection

    @contextmanager
    def forgetting(self) -> Iterator[Connection]:
        """A transaction that deletes what nobody shall find again: not in free space, not in the log.

        The rows are gone when it is done, whatever happens next; a SQLite database also remembers that it has traces
        to erase, so that after a kill the next `open` does it. PostgreSQL rewrites its tables; its own write-ahead log
        and backups are its administrator's. Raises OSError, saying so, if traces could not be erased.
        """
        with self.writing() as connection:
            yield connection
            if self.on_sqlite:
                connection.execute(text(f"PRAGMA user_version={_HAS_TRACES}"))
        for forget in self._when_forgotten:
            forget()
        self._erase()

    def when_forgotten(self, forget: Callable[[], object]) -> None:
        """Call this whenever something was deleted here: whoever holds text in memory lets go of it."""
        self._when_forgotten.append(forget)

    def _erase(self) -> None:
        try:
            with self._turn, self._autocommit() as connection:
                if not self.on_sqlite:
                    connection.execute(text(f"VACUUM FULL {', '.join(TEXTUAL)}"))
                    return
                # Cells that moved between pages leave copies behind in unused space, which only VACUUM rewrites.
                connection.execute(text("VACUUM"))
                if connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)")).one()[0]:
                    raise OSError(errno.EBUSY, f"{self.place}: another program is reading all the time. {_TRACES}")
                connection.execute(text("PRAGMA user_version=0"))
        except DBAPIError as error:
            said = in_words(error, self.place)
            raise OSError(
                getattr(said, "errno", None) or errno.EIO, f"{self.place}: {error.orig}. {_TRACES}"
            ) from error

    @contextmanager
    def _autocommit(self) -> Iterator[Connection]:
        options = {"outside": True} if self.on_sqlite else {"isolation_level": "AUTOCOMMIT"}
        with self.engine.execution_options(**options).connect() as connection:
            yield connection

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise in_words(error, self.place) from error
        except StatementError as error:  # a value that a column cannot hold
            raise (error.orig or error) from None


def in_words(error: DBAPIError, place: str) -> Exception:
    """A database's error as a ValueError or OSError that says what happened and what to do; else itself."""
    said = str(error.orig).strip()
    low = said.lower()
    if "is full" in low or "no space left" in low or "disk i/o error" in low:
        return OSError(
            errno.ENOSPC, f"{place}: could not be written ({said}), and nothing of it was stored; free some space"
        )
    if "not a database" in low or "malformed" in low:
        return ValueError(f"{place}: this is no database, or a damaged one ({said}); give --database another name")
    if "locked" in low:
        return OSError(
            errno.EBUSY, f"{place}: another program has kept the database locked for {BUSY_SECONDS:g} seconds; stop it"
        )
    if "readonly" in low or "read-only" in low or "unable to open" in low:
        return OSError(errno.EACCES, f"{place}: the database cannot be opened for writing ({said}); check who owns it")
    if error.connection_invalidated or "connect" in low:
        return OSError(errno.ECONNREFUSED, f"{place}: the database server cannot be reached ({said})")
    return error


def _url(location: str | Path) -> URL:
    """The URL of a path or a URL. A URL without a driver gets the one that is installed."""
    if isinstance(location, Path) or "://" not in location:
        if str(location) in ("", ":memory:"):
            raise ValueError(f"the database is {str(location)!r}; give the name of a file, such as feedback.db")
        return URL.create("sqlite", database=str(location))
    try:
        url = make_url(location.replace("postgres://", "postgresql://", 1))
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        backend = url.get_backend_name()
        if backend in ("sqlite", "postgresql"):
            url.get_dialect().import_dbapi()  # the same error early as late
    except ImportError as error:
        raise ValueError(f"PostgreSQL needs psycopg ({error}); pip install 'chatloom[postgresql]'") from None
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise ValueError(f"the database's URL cannot be read ({error}); {_EXAMPLES}") from None
    if backend not in ("sqlite", "postgresql"):
        raise ValueError(f"databases of the kind {backend!r} are not supported; {_EXAMPLES}")
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise ValueError(f"a database in memory keeps nothing; {_EXAMPLES}")
    return url


_EXAMPLES = "give a file such as feedback.db, sqlite:///feedback.db or postgresql://user:password@host/name"


def _check_file(path: Path) -> None:
    """Make the file, for its owner alone, or refuse one that is no database."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give --database the name of a file in it, such as {path}/feedback.db")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it, or give --database another name")
    if not path.exists():
        path.touch(0o600)
        return
    with path.open("rb") as file:
        start = file.read(len(_SQLITE_MAGIC))
    if start and start != _SQLITE_MAGIC:
        raise ValueError(f"{path}: this file is no database (it begins with {start!r}); give --database another name")


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says so
    connection.create_function(
        "lower", 1, lambda value: None if value is None else str(value).lower(), deterministic=True
    )
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            break
        except Exception as error:  # SQLite does not always wait for this lock by itself
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    for pragma in ("synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if not options.get("outside"):
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writing") else "BEGIN")


def now() -> float:
    """The time, in seconds since 1970; of two calls in one process the later is later, by a microsecond at least."""
    global _last
    with _clock:
        _last = max(time.time_ns() // 1000, _last + 1)
        return _last / 1e6


def new_id(created: float) -> str:
    """An id that nobody can guess, and that sorts by time."""
    return f"{round(created * 1e6):014x}{token_hex(9)}"


def storable(value: object, name: str) -> str:
    """Text that both databases and UTF-8 can hold. NUL, which PostgreSQL refuses, becomes U+FFFD."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, and is {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds half of a surrogate pair, which is not text; remove it") from None
    return value.replace("\0", "\ufffd")
