"""Security joined to an application: `guard`, `limits` and `bodies` in their order, and the routes of `sign_in`."""

from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI

from chatloom.feedback.database import Database
from chatloom.server import sign_in
from chatloom.server.accounts import ROLES, Accounts
from chatloom.server.bodies import BodyLimits
from chatloom.server.guard import Door, Guard, check_door, names
from chatloom.server.key_file import KeyFile
from chatloom.server.limits import Limits, RateLimits
from chatloom.server.passwords import LoginThrottle


@dataclass(frozen=True)
class SecurityConfig:
    """Who may use the server, and how much."""

    # A file of API keys, one a line; callers must then have one. docs/security.md has its form.
    api_key_file: Path | None = None
    # Host names by which the server may be called, such as chat.example.com behind a proxy.
    allowed_hosts: tuple[str, ...] = ()
    # For keys that have no limits of their own.
    limits: Limits = field(default_factory=Limits)


def install(app: FastAPI, *, database: Database | None, host: str, config: SecurityConfig) -> None:
    """Let every request of `app` be judged; what is added after this is outside it.

    Raises ValueError for a key file that is wrong, and where `host` lets strangers in whom nothing would ask.
    """
    key_file = None if config.api_key_file is None else KeyFile(config.api_key_file, ROLES)
    accounts = Accounts(database, key_file)
    door = Door(host, names(config.allowed_hosts))
    check_door(door, accounts)
    app.state.accounts, app.state.login_throttle = accounts, LoginThrottle()
    app.include_router(sign_in.router)
    app.add_middleware(BodyLimits)  # the innermost: what is added later is outside
    app.add_middleware(RateLimits, default=config.limits)
    app.add_middleware(Guard, accounts=accounts, door=door)
