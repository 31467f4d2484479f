"""`chatloom accounts`: users and API keys in a database, from the terminal of whoever runs the server.

A running server sees a change with its next request. A password is asked for, or read as one line of the standard
input; it is never an option, where other people of the machine would see it.
"""

import getpass
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chatloom.feedback.database import Database
from chatloom.server.accounts import Accounts, Key
from chatloom.server.limits import Limits


@dataclass(frozen=True)
class Config:
    """Users and API keys: who may use a server."""

    # What to do. `remove` takes a key's id, or a user's name, and deletes what the user said.
    action: tyro.conf.Positional[Literal["list", "add-user", "set-password", "add-key", "remove"]]
    # The user's name; for `add-key`, the user who will own the key; for `remove`, also a key's id.
    name: tyro.conf.Positional[str] = ""
    # The server's database: a file, or a PostgreSQL URL.
    database: str = "feedback.db"
    # Of a new user: admin sees the log and manages accounts, labeler sees examples of what others judged.
    role: Literal["admin", "labeler", "user"] = "user"
    # Of a new user: no password, it comes by keys only.
    keys_only: bool = False
    # Of `remove`: keep what the user said, for exports; nobody else can then have the name.
    keep_conversations: bool = False
    # Of a new key: what it is called.
    key_name: str = ""
    # What a new key may use.
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.action != "list" and not self.name:
            raise ValueError(f"chatloom accounts {self.action} needs a name")


def run(config: Config) -> None:
    """Do it, and say what was done."""
    console = Console(highlight=False, soft_wrap=True)
    with Database.open(config.database) as database:
        accounts = Accounts(database)
        if config.action == "add-user":
            password = None if config.keys_only else _password()
            user = accounts.add_user(config.name, password=password, role=config.role)
            console.print(f"added the user {escape(user.name)} ({user.role})")
        elif config.action == "set-password":
            accounts.set_password(config.name, _password())
            console.print(f"{escape(config.name)} has a new password and is signed out everywhere")
        elif config.action == "add-key":
            secret, key = accounts.add_key(config.name, name=config.key_name, limits=config.limits)
            Console(stderr=True).print(f"{key.id} of {escape(key.owner)}; it is shown this once:", highlight=False)
            sys.stdout.write(f"{secret}\n")
        elif config.action == "remove":
            if config.name.startswith("key-"):
                accounts.remove_key(config.name)
            else:
                accounts.remove_user(config.name, keep_conversations=config.keep_conversations)
            console.print(f"removed {escape(config.name)}")
        else:
            _list(accounts, console)


def _password() -> str:
    """Asked for twice at a terminal; else one line of the standard input."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        if not line:
            raise ValueError("there is no password on the standard input; give it as one line")
        return line.rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise ValueError("the two passwords are not the same")
    return password


def _list(accounts: Accounts, console: Console) -> None:
    users, keys = accounts.users(), accounts.keys()
    if not users:
        console.print("no users: on loopback the server asks nobody who they are, and elsewhere it will not start")
        return
    people = Table("user", "role", "since", "comes by", box=None)
    for user in users:
        count = sum(key.owner == user.name for key in keys)
        means = ["password"] * user.has_password + [f"{count} {'key' if count == 1 else 'keys'}"] * bool(count)
        people.add_row(escape(user.name), user.role, _day(user.created), " and ".join(means) or "nothing yet")
    console.print(people)
    if keys:
        table = Table("key", "name", "owner", "since", "limits", box=None)
        for key in keys:
            table.add_row(key.id, escape(key.name), escape(key.owner), _day(key.created), _limits(key))
        console.print()
        console.print(table)


def _day(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def _limits(key: Key) -> str:
    given = {name: value for name, value in vars(key.limits).items() if value is not None}
    return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in given.items()) or "none"
