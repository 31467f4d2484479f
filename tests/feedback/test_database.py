"""What a database must stand: a kill, a second server, a full disk, foreign files; and what it must forget."""

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
from sqlalchemy import insert, text

from chatloom.feedback.records import Made
from chatloom.feedback.store import Store
from chatloom.feedback.tables import messages
from chatloom.testing.talk import Talk

# --- a kill -------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from chatloom.feedback.store import Store
from chatloom.testing.talk import Talk
with Store.open(sys.argv[1]) as store:
    talk = Talk(store, owner=sys.argv[2])
    question = talk.ask("Why?")
    for count in range(int(sys.argv[3])):
        answer = talk.answer(question, f"Because {count}", finish_reason="stop")
        store.rate(answer.id, rater=sys.argv[2], value=1, comment=str(count))
        print(answer.id, flush=True)
"""


def writer(location: str, name: str, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", textwrap.dedent(WRITER), location, name, str(count)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("seed", range(2))
def test_a_kill_during_a_thousand_writes_loses_no_acknowledged_row(location: str, seed: int) -> None:
    process = writer(location, "ann", 1000)
    assert process.stdout is not None
    last = random.Random(seed).randrange(20, 200)
    acknowledged = [process.stdout.readline().strip() for _ in range(last)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
    assert process.wait() == -signal.SIGKILL
    assert last <= len(acknowledged) < 1000
    with Store.open(location) as store:
        (conversation,) = store.conversations(owner="ann")
        _, *answers = store.messages(conversation.id)
        ratings = list(store.feedback("rating"))
        # The one after the last acknowledged may be there, whole or without its rating, but nothing less.
        assert [each.id for each in answers][: len(acknowledged)] == acknowledged
        assert len(answers) - len(acknowledged) in (0, 1)
        assert len(ratings) - len(acknowledged) in (0, 1)
        assert all(each.made and each.made.finish_reason == "stop" for each in answers)
        if store.on_sqlite:
            with store.reading() as connection:
                assert connection.execute(text("PRAGMA integrity_check")).scalar_one() == "ok"


def test_sqlite_waits_for_the_disk(tmp_path: Path) -> None:
    with Store.open(tmp_path / "feedback.db") as store, store.reading() as connection:
        found = {name: connection.execute(text(f"PRAGMA {name}")).scalar_one() for name in PRAGMAS}
    assert found == PRAGMAS


PRAGMAS = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1, "busy_timeout": 30000}


# --- several at once ----------------------------------------------------------------------------------------------


def test_two_processes_write_to_one_database(location: str) -> None:
    names = ["ann", "bob"]
    processes = [writer(location, name, 60) for name in names]  # both also make the database at once
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    with Store.open(location) as store:
        for name, output in zip(names, outputs):
            (conversation,) = store.conversations(owner=name)
            assert [each.id for each in store.messages(conversation.id)][1:] == output
        assert len(list(store.feedback())) == 120


def test_many_threads_write_and_read(store: Store) -> None:
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            talk = Talk(store, owner=name)
            question = talk.ask("Why?")
            for _ in range(5):
                store.rate(talk.answer(question, "Because").id, rater=name, value=1)
                assert len(store.conversations(owner=name, search="because")) == 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"user {number}",)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(list(store.feedback())) == 24 * 5


def test_a_transaction_is_kept_whole_or_not_at_all(store: Store, talk: Talk) -> None:
    question = talk.ask("Why?")
    with pytest.raises(OverflowError):  # a token number that is none, found after the message was inserted
        store.add_message(
            talk.conversation.id, parent=question.id, role="assistant", content="x", made=Made("tiny", tokens=[-1])
        )
    assert store.messages(talk.conversation.id) == [question]


def test_errors_do_not_tell_what_was_said(store: Store, talk: Talk) -> None:
    question = talk.ask("Why?")
    row = {name: value for name, value in asdict(question).items() if name != "made"}
    with pytest.raises(Exception, match="messages") as caught, store.writing() as connection:
        connection.execute(insert(messages), {**row, "content": "secret"})  # the same id again
    assert "secret" not in str(caught.value)


def test_a_program_that_keeps_the_database_locked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatloom.feedback.database.BUSY_SECONDS", 0.05)
    path = tmp_path / "feedback.db"
    with Store.open(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OSError, match=r"another program has kept the database locked for 0\.05 seconds"):
            Talk(store)
        other.execute("ROLLBACK")
        other.close()
        Talk(store)


# --- a full disk --------------------------------------------------------------------------------------------------


def test_a_full_disk_stores_nothing_half_and_can_be_gone_on_from(tmp_path: Path) -> None:
    with Store.open(tmp_path / "feedback.db") as store:
        talk = Talk(store)
        question = talk.ask("Why?")
        with store.reading() as connection:
            connection.execute(text("PRAGMA max_page_count=60"))  # 240 KB
        count = 0

        def fill() -> None:
            nonlocal count
            while count < 100:
                talk.answer(question, "Because. " * 500)
                count += 1

        with pytest.raises(OSError, match=r"could not be written .*full.*nothing of it was stored; free some space"):
            fill()
        assert count > 5
        assert len(store.messages(talk.conversation.id)) == 1 + count
        with store.reading() as connection:
            connection.execute(text("PRAGMA max_page_count=100000"))
        talk.answer(question, "Because. " * 500)
        assert len(store.messages(talk.conversation.id)) == 2 + count


def test_a_disk_that_takes_no_more_bytes(tmp_path: Path) -> None:
    """The operating system's own limit on a file, which ends as an I/O error."""
    program = """
import resource, signal, sys
from chatloom.feedback.store import Store
from chatloom.testing.talk import Talk
store = Store.open(sys.argv[1])
talk = Talk(store)
question = talk.ask("Why?")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
try:
    for count in range(1000):
        talk.answer(question, "Because. " * 500)
except OSError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert len(store.messages(talk.conversation.id)) == 1 + count
    talk.answer(question, "after")
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", program, str(tmp_path / "feedback.db")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "could not be written" in done.stdout
    assert "free some space" in done.stdout


# --- files and URLs that cannot be opened -------------------------------------------------------------------------


def test_a_new_database_is_its_owners_alone(tmp_path: Path) -> None:
    with Store.open(tmp_path / "feedback.db") as store:
        Talk(store)
        assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def test_files_that_are_no_database_are_refused_and_not_touched(tmp_path: Path) -> None:
    words, damaged = tmp_path / "words.db", tmp_path / "damaged.db"
    words.write_text("just some words")
    damaged.write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    with pytest.raises(ValueError, match=r"is no database .it begins with b'just some"):
        Store.open(words)
    with pytest.raises(ValueError, match="no database, or a damaged one"):
        Store.open(damaged)
    assert words.read_text() == "just some words"
    assert damaged.read_bytes() == b"SQLite format 3\0" + b"x" * 5000
    with pytest.raises(ValueError, match="is a folder"):
        Store.open(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        Store.open(tmp_path / "none" / "feedback.db")


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("", "give the name of a file"),
        (":memory:", "give the name of a file"),
        ("sqlite://", "in memory keeps nothing"),
        ("mysql://me@host/name", "kind 'mysql' are not supported"),
        ("nonsense://x", "kind 'nonsense' are not supported"),
        ("postgresql+nodriver://x", "URL cannot be read"),
        ("://", "URL cannot be read"),
    ],
)
def test_locations_that_make_no_sense(location: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Store.open(location)


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    pytest.importorskip("psycopg", reason="PostgreSQL is NOT tested here: pip install 'chatloom[test]'")
    with pytest.raises(OSError, match="cannot be reached") as caught:
        Store.open("postgresql://ann:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)


def test_sqlite_by_url_and_by_path_is_one(tmp_path: Path) -> None:
    with Store.open(tmp_path / "feedback.db") as store:
        talk = Talk(store)
    with Store.open(f"sqlite:///{tmp_path}/feedback.db") as store:
        assert store.conversation(talk.conversation.id, owner="") == talk.conversation


# --- forgetting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [6, 7])
def test_rows_that_moved_leave_no_copies(tmp_path: Path, seed: int) -> None:
    """With these seeds SQLite, which overwrites what it frees, leaves two copies each behind unless one looks."""
    chance = random.Random(seed)
    secrets = [f"SECRET{number:02}-" for number in range(8)]
    with Store.open(tmp_path / "feedback.db") as store:
        talks = [Talk(store) for _ in secrets]
        questions = [talk.ask("Q") for talk in talks]
        answers: list[tuple[int, str]] = []
        for _ in range(120):
            number = chance.randrange(8)
            text_now = secrets[number] * chance.randrange(1, 60)
            answers.append((number, talks[number].answer(questions[number], text_now, status="running").id))
            for _ in range(3):
                number, id = chance.choice(answers[-12:])
                store.update_message(id, content=secrets[number] * chance.randrange(1, 60))
        for talk in talks[::2]:
            store.delete_conversation(talk.conversation.id, owner="")
        assert [holds(tmp_path, secret) for secret in secrets] == [False, True] * 4


def holds(folder: Path, secret: str) -> bool:
    """Whether any byte of the database's files tells."""
    return any(secret.encode() in file.read_bytes() for file in folder.iterdir())


def test_what_is_deleted_is_in_no_byte_of_the_files(tmp_path: Path) -> None:
    """Titles, system messages, questions, answers that grew, comments, tags and edits."""
    chance = random.Random(0)
    with Store.open(tmp_path / "feedback.db") as store:
        talks = [Talk(store, system=f"SECRET{number:02}-") for number in range(20)]
        last: list[object] = [None] * 20
        with store.writing() as connection:
            connection.execute(text("CREATE TABLE unrelated (id TEXT)"))
        for _ in range(90):
            number = chance.randrange(20)
            talk, secret = talks[number], f"SECRET{number:02}-"
            store.rename_conversation(talk.conversation.id, secret, owner="")
            question = talk.ask(secret * chance.randrange(1, 300), last[number])  # type: ignore[arg-type]
            answer = talk.answer(question, "", status="running")
            for length in range(chance.randrange(4)):
                store.update_message(answer.id, content=secret * (length * chance.randrange(100) + 1))
            store.rate(answer.id, rater="ann", value=1, comment=secret, tags=[secret])
            store.edit(answer.id, secret * chance.randrange(1, 100), rater="ann")
            last[number] = store.message(answer.id)
        gone = chance.sample(range(20), 8)
        with store.reading() as connection:  # another reader, which does not hold it up
            connection.execute(text("SELECT 1"))
        for number in gone:
            store.delete_conversation(talks[number].conversation.id, owner="")
        bytes_on_disk = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        found = [number for number in range(20) if f"SECRET{number:02}-".encode() in bytes_on_disk]
        assert found == sorted(set(range(20)) - set(gone))


def test_a_kill_before_the_traces_are_gone_is_made_good_by_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: Store) -> None:
        raise KeyboardInterrupt

    with Store.open(tmp_path / "feedback.db") as store:
        talk = Talk(store)
        talk.ask("SECRET")
        with monkeypatch.context() as patch:
            patch.setattr(Store, "_erase", killed)
            with pytest.raises(KeyboardInterrupt):
                store.delete_conversation(talk.conversation.id, owner="")
        assert store.conversations(owner="") == []
        assert holds(tmp_path, "SECRET")
        with Store.open(tmp_path / "feedback.db"):
            assert not holds(tmp_path, "SECRET")
            erased = []
            monkeypatch.setattr(Store, "_erase", erased.append)
            Store.open(tmp_path / "feedback.db").close()
            assert not erased  # once is enough


def test_a_reader_that_holds_on_to_what_was_deleted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatloom.feedback.database.BUSY_SECONDS", 0.05)
    path = tmp_path / "feedback.db"
    with Store.open(path) as store:
        talk = Talk(store)
        talk.ask("SECRET")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN")
        other.execute("SELECT * FROM messages").fetchall()
        with pytest.raises(OSError, match=r"is reading all the time\. What was deleted is gone from the conversations"):
            store.delete_conversation(talk.conversation.id, owner="")
        assert store.conversations(owner="") == []
        Store.open(path).close()  # it opens all the same
        other.execute("COMMIT")
        other.close()
        Store.open(path).close()
        assert not holds(tmp_path, "SECRET")
