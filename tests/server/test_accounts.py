"""Users, sessions and keys in the database: only hashes at rest, and what is taken away is gone at once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chatloom.feedback.store import Store
from chatloom.server.accounts import PERMISSIONS, ROLES, SESSION_SECONDS, Accounts, Principal, User
from chatloom.server.key_file import KeyFile
from chatloom.server.limits import Limits

PASSWORD = "correct horse battery"


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as opened:
        yield opened


@pytest.fixture
def accounts(store: Store, clock: Clock) -> Accounts:
    return Accounts(store, clock=clock)


def test_users(accounts: Accounts) -> None:
    assert not accounts.demanded()
    ana = accounts.add_user("ana", password=PASSWORD, role="admin")
    ben = accounts.add_user("ben", password=None)
    assert accounts.demanded()
    assert accounts.users() == [ana, ben] == [User("ana", "admin", ana.created, True), User("ben", "user", 1e6, False)]
    assert accounts.authenticate("ana", PASSWORD) == Principal("ana", "admin")
    for name, password in (
        ("ana", "wrong password"),
        ("ana", ""),
        ("ben", ""),
        ("nobody", PASSWORD),
        ("a\0", PASSWORD),
    ):
        assert accounts.authenticate(name, password) is None
    accounts.remove_user("ana")
    assert accounts.authenticate("ana", PASSWORD) is None
    with pytest.raises(ValueError, match="there is no user 'ana'"):
        accounts.remove_user("ana")


def test_who_is_removed_leaves_nothing_to_the_next_of_that_name(accounts: Accounts, store: Store) -> None:
    for name in ("ana", "ben"):
        accounts.add_user(name, password=PASSWORD)
        talk = store.create_conversation(owner=name, title="mine")
        store.add_message(talk.id, parent=None, role="user", content=f"the secret of {name}")
    accounts.remove_user("ana")
    assert [each.owner for each in store.conversations(owner=None)] == ["ben"]
    assert b"the secret of ana" not in b"".join(path.read_bytes() for path in Path(store.place).parent.iterdir())
    accounts.add_user("ana", password=None)
    accounts.remove_user("ben", keep_conversations=True)
    assert [each.owner for each in store.conversations(owner=None)] == ["ben"]
    with pytest.raises(ValueError, match="there are conversations of 'ben', who is no user"):
        accounts.add_user("ben", password=None)
    accounts.remove_user("ben")
    assert store.conversations(owner=None) == []
    accounts.add_user("ben", password=None)


@pytest.mark.parametrize("name", ["", "Ana", "-ana", "an a", "a" * 65, "key-1", "file-1", "ana\n", "a/b"])
def test_names_that_cannot_be(accounts: Accounts, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a user's name"):
        accounts.add_user(name, password=PASSWORD)


def test_what_cannot_be_added(accounts: Accounts) -> None:
    accounts.add_user("ana", password=PASSWORD)
    with pytest.raises(ValueError, match="there is a user 'ana' already"):
        accounts.add_user("ana", password=PASSWORD)
    with pytest.raises(ValueError, match="role is 'owner'; it is one of admin, labeler, user"):
        accounts.add_user("ben", password=PASSWORD, role="owner")
    with pytest.raises(ValueError, match="8 to 1024 characters; this one has 3"):
        accounts.add_user("ben", password="abc")
    assert [user.name for user in accounts.users()] == ["ana"]


def test_keys(accounts: Accounts) -> None:
    accounts.add_user("ana", password=None, role="labeler")
    limits = Limits(requests_per_minute=3, tokens_per_day=100)
    secret, key = accounts.add_key("ana", name="laptop", limits=limits)
    assert accounts.keys() == [key]
    assert (key.name, key.owner, key.role, key.limits) == ("laptop", "ana", "labeler", limits)
    assert accounts.holder(secret) == Principal("ana", "labeler", key)
    for wrong in ("", secret[:-1], f"{secret}x", key.id, "\udc80", "\0"):
        assert accounts.holder(wrong) is None
    with pytest.raises(ValueError, match="there is no user 'ben' to own the key"):
        accounts.add_key("ben")
    with pytest.raises(ValueError, match="no key 'key-0'"):
        accounts.remove_key("key-0")
    accounts.remove_key(key.id)
    assert accounts.holder(secret) is None


def test_a_digest_that_agrees_only_in_the_digits_it_is_found_by_is_not_the_key(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts.add_user("ana", password=None)
    secret, _ = accounts.add_key("ana")
    token = accounts.open_session(Principal("ana", "user"))
    real = __import__("chatloom.server.accounts", fromlist=["_digest"])._digest
    monkeypatch.setattr("chatloom.server.accounts._digest", lambda text: real(text)[:16] + "0" * 48)
    assert accounts.holder(secret) is None
    assert accounts.session(token) is None


def test_sessions_end(accounts: Accounts, clock: Clock) -> None:
    ana = Principal("ana", "admin")
    accounts.add_user("ana", password=PASSWORD, role="admin")
    tokens = [accounts.open_session(ana) for _ in range(2)]
    assert [accounts.session(token) for token in tokens] == [ana, ana]
    assert accounts.session("no token") is None
    accounts.close_session(tokens[0])
    assert [accounts.session(token) for token in tokens] == [None, ana]
    accounts.set_password("ana", "another password")
    assert accounts.session(tokens[1]) is None
    assert accounts.authenticate("ana", PASSWORD) is None
    assert accounts.authenticate("ana", "another password") == ana
    token = accounts.open_session(ana)
    clock.now += SESSION_SECONDS
    assert accounts.session(token) is None
    token = accounts.open_session(ana)
    accounts.remove_user("ana")
    assert accounts.session(token) is None


def test_a_session_of_a_key_ends_with_the_key(accounts: Accounts, store: Store, tmp_path: Path) -> None:
    accounts.add_user("ana", password=None)
    secret, key = accounts.add_key("ana")
    holder = accounts.holder(secret)
    assert holder is not None
    token = accounts.open_session(holder)
    assert accounts.session(token) == holder
    accounts.remove_key(key.id)
    assert accounts.session(token) is None

    path = tmp_path / "keys"
    path.write_text("sk-first-key-of-the-file role=admin\nsk-second-key-of-the-file\n")
    path.chmod(0o600)
    accounts = Accounts(store, KeyFile(path, ROLES))
    holder = accounts.holder("sk-first-key-of-the-file")
    assert holder is not None
    assert holder.role == "admin"
    token = accounts.open_session(holder)
    assert accounts.session(token) == holder
    path.write_text("sk-second-key-of-the-file\n")
    assert accounts.session(token) is None
    assert accounts.holder("sk-first-key-of-the-file") is None


def test_a_role_that_is_changed_elsewhere_counts_at_once(accounts: Accounts, store: Store) -> None:
    """Another process has the same database; nothing is remembered here."""
    elsewhere = Accounts(store)
    elsewhere.add_user("ana", password=PASSWORD, role="admin")
    token = accounts.open_session(Principal("ana", "admin"))
    elsewhere.remove_user("ana")
    elsewhere.add_user("ana", password=PASSWORD, role="user")
    assert accounts.session(token) is None  # and a new person of the same name has no old session


def test_no_secret_is_in_the_files_of_the_database(accounts: Accounts, tmp_path: Path) -> None:
    accounts.add_user("ana", password=PASSWORD)
    secret, _ = accounts.add_key("ana")
    token = accounts.open_session(Principal("ana", "user"))
    data = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"ana" in data
    for text in (PASSWORD, secret, secret.removeprefix("sk-chatloom-"), token):
        assert text.encode() not in data


def test_without_a_database_there_are_the_keys_of_the_file_only(tmp_path: Path) -> None:
    assert not Accounts(None).demanded()
    assert Accounts(None).holder("x") is None
    assert Accounts(None).session("x") is None
    (tmp_path / "keys").write_text("sk-first-key-of-the-file")
    accounts = Accounts(None, KeyFile(tmp_path / "keys", ROLES))
    assert accounts.demanded()
    assert accounts.holder("sk-first-key-of-the-file") is not None
    assert accounts.holder("another") is None


def test_permissions_name_roles_that_there_are() -> None:
    assert all(set(roles) <= set(ROLES) for roles in PERMISSIONS.values())
    assert all("admin" in roles for roles in PERMISSIONS.values())
    assert not any("user" in roles for roles in PERMISSIONS.values())
