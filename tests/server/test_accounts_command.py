"""`chatloom accounts`, as it is typed."""

import io
from pathlib import Path

import pytest

from chatloom.cli import main
from chatloom.feedback.store import Store
from chatloom.server.accounts import Accounts, Principal

PASSWORD = "correct horse battery"


class Terminal:
    """Runs the command with a standard input; says what it printed."""

    def __init__(self, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._database, self._monkeypatch, self._capsys = database, monkeypatch, capsys

    def __call__(self, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
        self._monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        self._capsys.readouterr()
        try:
            status = main(["accounts", *arguments, "--database", str(self._database)])
        except SystemExit as error:
            status = int(error.code or 0)
        captured = self._capsys.readouterr()
        return status, captured.out, captured.err


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(tmp_path / "feedback.db", monkeypatch, capsys)


def test_from_nobody_to_a_key_and_back(terminal: Terminal, tmp_path: Path) -> None:
    assert "no users: on loopback the server asks nobody" in terminal("list")[1]
    status, out, _ = terminal("add-user", "ana", "--role", "admin", stdin=f"{PASSWORD}\n")
    assert (status, out) == (0, "added the user ana (admin)\n")
    terminal("add-user", "bot", "--keys-only")
    status, out, err = terminal("add-key", "bot", "--key-name", "nightly", "--tokens-per-day", "1000")
    secret = out.strip()
    assert out == f"{secret}\n"
    assert secret.startswith("sk-chatloom-")
    assert secret not in err
    status, out, _ = terminal("list")
    assert "ana   admin" in out
    assert "password" in out
    assert "1 key" in out
    assert "1000 tokens per day" in out
    assert secret not in out
    with Store.open(tmp_path / "feedback.db") as store:
        accounts = Accounts(store)
        assert accounts.authenticate("ana", PASSWORD) == Principal("ana", "admin")
        (key,) = accounts.keys()
        assert accounts.holder(secret) == Principal("bot", "user", key)
    assert terminal("set-password", "ana", stdin="another password")[0] == 0
    assert terminal("remove", key.id)[:2] == (0, f"removed {key.id}\n")
    assert terminal("remove", "bot")[0] == 0
    with Store.open(tmp_path / "feedback.db") as store:
        assert [user.name for user in Accounts(store).users()] == ["ana"]
        assert Accounts(store).keys() == []
        assert Accounts(store).authenticate("ana", "another password") is not None


@pytest.mark.parametrize("keep", [True, False])
def test_removing_a_user_deletes_what_they_said_unless_it_is_kept(
    terminal: Terminal, tmp_path: Path, keep: bool
) -> None:
    terminal("add-user", "ana", stdin=PASSWORD)
    with Store.open(tmp_path / "feedback.db") as store:
        store.create_conversation(owner="ana")
    assert terminal("remove", "ana", *["--keep-conversations"] * keep)[0] == 0
    with Store.open(tmp_path / "feedback.db") as store:
        assert len(store.conversations(owner="ana")) == keep
    assert terminal("add-user", "ana", "--keys-only")[0] == (2 if keep else 0)


@pytest.mark.parametrize(
    ("arguments", "stdin", "sentence"),
    [
        (("add-user", "ana"), "", "no password on the standard input"),
        (("add-user", "ana"), "short\n", "8 to 1024 characters; this one has 5"),
        (("add-user", "Ana!"), f"{PASSWORD}\n", "cannot be a user's name"),
        (("add-user",), "", "accounts add-user needs a name"),
        (("add-key", "nobody"), "", "there is no user 'nobody' to own the key"),
        (("add-key", "ana", "--requests-per-minute", "0"), "", "requests_per_minute is 0"),
        (("remove", "nobody"), "", "there is no user 'nobody'"),
        (("remove", "key-123"), "", "there is no key 'key-123'"),
        (("set-password", "nobody"), f"{PASSWORD}\n", "there is no user 'nobody'"),
        (("add-user", "ana", "--password", PASSWORD), "", "--password"),  # there is no such option, and will not be
    ],
)
def test_what_cannot_be(terminal: Terminal, arguments: tuple[str, ...], stdin: str, sentence: str) -> None:
    status, out, err = terminal(*arguments, stdin=stdin)
    assert status == 2
    assert sentence in " ".join((out + err).replace("│", " ").split())


def test_a_password_is_asked_for_twice_at_a_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [PASSWORD, PASSWORD, PASSWORD, "something else"]

    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("getpass.getpass", lambda prompt: answers.pop(0))
    monkeypatch.setattr(io, "StringIO", Tty)
    assert terminal("add-user", "ana")[0] == 0
    status, _, err = terminal("set-password", "ana")
    assert status == 2
    assert "the two passwords are not the same" in err
    assert not answers
