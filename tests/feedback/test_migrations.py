"""A database of every past version is brought up to date with all its rows; what cannot be opened is refused.

`schemas/` holds what each released version is, written once: a step of the list that was changed afterwards, and so
would never reach those who have run it, fails here. After a new step run this file as a program to add its dump.
"""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.schema import UniqueConstraint

from chatloom.feedback import migrations, tables
from chatloom.feedback.records import PastRequest
from chatloom.feedback.store import Store
from chatloom.testing.talk import Talk

SCHEMAS = Path(__file__).parent / "schemas"


def at_version(location: str, version: int) -> None:
    """A database as that version left it."""
    url = location if "://" in location else f"sqlite:///{location}"
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        migrations.migrate(connection, location, to=version)
    engine.dispose()


def dump(path: Path) -> str:
    """Everything that makes a SQLite database what it is, but its rows."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid").fetchall()
    return "".join(f"{sql};\n" for (sql,) in rows)


def described(store: Store) -> dict[str, Any]:
    """Tables with their columns, keys and indexes, as the database itself tells."""
    found = inspect(store.engine)
    return {
        name: (
            [(column["name"], str(column["type"]), column["nullable"]) for column in found.get_columns(name)],
            found.get_pk_constraint(name)["constrained_columns"],
            sorted((tuple(key["constrained_columns"]), key["referred_table"]) for key in found.get_foreign_keys(name)),
            sorted(tuple(each["column_names"]) for each in found.get_unique_constraints(name)),
            sorted((each["name"], tuple(each["column_names"])) for each in found.get_indexes(name)),
        )
        for name in sorted(found.get_table_names())
    }


ROWS = {  # a row for each table of version 1
    "conversations": "'c', 'ann', 'title', '', 1.5, 2.5",
    "messages": "'q', 'c', NULL, 'user', 'Why?', 1.5, 1.5, 'done'",
    "made": "'a', 'tiny', NULL, '{}', '7', :tokens, :tokens, 'stop', 0.5, NULL",
    "ratings": "'r', 'c', 'ann', 3.5, TRUE, 'a', 1, '[\"good\"]', 'Yes'",
    "pairs": "'p', 'c', 'ann', 3.5, TRUE, 'a', 'b', FALSE, '', 'a b'",
    "rankings": "'k', 'c', 'ann', 3.5, TRUE, 'a b'",
    "edits": "'e', 'c', 'ann', 3.5, FALSE, 'a', 'Better'",
}


def fill(location: str) -> None:
    """Rows as version 1 had them."""
    url = location if "://" in location else f"sqlite:///{location}"
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    packed = tables.Tokens().process_bind_param([1, 2, 3], None)
    with engine.begin() as connection:
        for table, values in ROWS.items():
            if table == "made":
                for answer in "ab":
                    said = f"INSERT INTO messages VALUES ('{answer}', 'c', 'q', 'assistant', '{answer}', 2, 2, 'done')"
                    connection.execute(text(said))
            given = {"tokens": packed} if table == "made" else {}
            escaped = values if given else values.replace(":", r"\:")
            connection.execute(text(f"INSERT INTO {table} VALUES ({escaped})"), given)
        connection.execute(text("INSERT INTO ranked VALUES ('k', 'b', 0), ('k', 'a', 1)"))
    engine.dispose()


@pytest.mark.parametrize("version", range(migrations.VERSION + 1))
def test_every_past_version_is_brought_up_to_date(location: str, version: int) -> None:
    at_version(location, version)
    if version >= 1:
        fill(location)
    with Store.open(location) as store:
        with store.reading() as connection:
            assert migrations.version_of(connection) == migrations.VERSION
        if version >= 1:
            question, a, _ = store.messages("c")
            assert (question.content, a.made and a.made.tokens) == ("Why?", [1, 2, 3])
            assert [each.id for each in store.feedback(consent=None)] == ["r", "p", "k", "e"]
            assert store.statistics().by_rater == {"ann": {"rating": 1, "pair": 1, "ranking": 1}}
        # And it can be written to in all its parts.
        talk = Talk(store)
        store.rate(talk.answer(talk.ask("Why?"), "Because").id, rater="bob", value=1)
        store.log_requests([PastRequest(id="1", created=1.0, path="/v1", status=200)])
        updated = described(store)
    with Store.open(location) as again:
        assert described(again) == updated
        assert len(again.requests()) == 1


@pytest.mark.parametrize("version", range(1, migrations.VERSION + 1))
def test_a_released_step_is_never_changed(tmp_path: Path, version: int) -> None:
    path = tmp_path / "feedback.db"
    at_version(str(path), version)
    assert dump(path) == (SCHEMAS / f"{version}.sql").read_text(encoding="utf-8"), (
        f"step {version} of migrations.STEPS is not what it was when it was released; add a step instead"
    )


def alike(kind: str) -> str:
    """The name of a type, where one type has several."""
    return kind.replace("DOUBLE PRECISION", "DOUBLE").replace("REAL", "DOUBLE")


def test_the_tables_are_what_the_steps_make(store: Store) -> None:
    made = described(store)
    made.pop("chatloom_version")
    assert set(made) == set(tables.metadata.tables)
    for name, table in tables.metadata.tables.items():
        columns, primary, foreign, unique, indexes = made[name]
        dialect = store.engine.dialect
        listed = [(each.name, alike(each.type.compile(dialect)), each.nullable) for each in table.columns]
        assert listed == [(name, alike(kind), nullable) for name, kind, nullable in columns]
        assert primary == [column.name for column in table.primary_key]
        assert foreign == sorted(((key.parent.name,), key.column.table.name) for key in table.foreign_keys)
        own = [each for each in table.constraints if isinstance(each, UniqueConstraint)]
        assert unique == sorted(tuple(column.name for column in each.columns) for each in own)
        mine = sorted((str(each.name), tuple(column.name for column in each.columns)) for each in table.indexes)
        assert [each for each in indexes if each[1] not in unique] == mine


def test_a_step_that_fails_leaves_the_version_before(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(location).close()
    broken = migrations.Step("half", ("CREATE TABLE half (id TEXT)", "INSERT INTO nothing VALUES (1)"))
    monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, broken))
    monkeypatch.setattr(migrations, "VERSION", len(migrations.STEPS))
    with pytest.raises(Exception, match="nothing"):
        Store.open(location)
    monkeypatch.undo()
    with Store.open(location) as store:
        assert "half" not in inspect(store.engine).get_table_names()


def test_a_newer_version_is_refused_and_not_touched(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = migrations.Step("the future", ("CREATE TABLE future (id TEXT)",))
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "STEPS", (*migrations.STEPS, newer))
        patch.setattr(migrations, "VERSION", len(migrations.STEPS))
        Store.open(location).close()
    with pytest.raises(ValueError, match=rf"of version {migrations.VERSION + 1}, and this Chatloom knows"):
        Store.open(location)


def test_another_programs_database_is_refused_and_not_touched(location: str) -> None:
    url = location if "://" in location else f"sqlite:///{location}"
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE recipes (name TEXT)"))
    with pytest.raises(ValueError, match="another program's"):
        Store.open(location)
    assert inspect(engine).get_table_names() == ["recipes"]
    engine.dispose()


if __name__ == "__main__":
    import tempfile

    for number in range(1, migrations.VERSION + 1):
        if not (SCHEMAS / f"{number}.sql").exists():
            with tempfile.TemporaryDirectory() as folder:
                at_version(f"{folder}/feedback.db", number)
                SCHEMAS.mkdir(exist_ok=True)
                (SCHEMAS / f"{number}.sql").write_text(dump(Path(folder) / "feedback.db"), encoding="utf-8")
