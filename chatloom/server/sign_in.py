"""Signing in and an administrator's accounts, as routes: /api/me, login, logout, password and accounts.

A person signs in with name and password, or with an API key where there are keys and no users. What these routes
answer never holds a password, a token or (but once, when it is made) a key.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from chatloom.server import guard
from chatloom.server.accounts import PERMISSIONS, SESSION_SECONDS, Accounts, Key, Principal, User
from chatloom.server.errors import APIError
from chatloom.server.limits import Limits
from chatloom.server.passwords import LONGEST, LoginThrottle

router = APIRouter(include_in_schema=False)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Login(_Body):
    """Name and password, or a key."""

    name: str = Field(default="", max_length=64)
    password: str = Field(default="", max_length=LONGEST)
    key: str = Field(default="", max_length=256)


class NewUser(_Body):
    """A user to add; without a password, one who comes by keys only."""

    name: str
    role: str = "user"
    password: str | None = None


class NewPassword(_Body):
    """One's own password, changed."""

    old: str = Field(max_length=LONGEST)
    new: str = Field(max_length=LONGEST)


class NewKey(_Body):
    """A key to make, with what it may use."""

    owner: str
    name: str = ""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    concurrent_requests: int | None = None


@router.get("/api/me")
async def me(request: Request) -> dict[str, Any]:
    """Who one is, what one may, and the token that writes need; `signed_in` is false for a stranger."""
    return _me(request.state.principal, guard.session_token(request.scope))


@router.post("/api/login")
async def login(body: Login, request: Request, response: Response) -> dict[str, Any]:
    """Sign in; the answer sets the session's cookie. 401 for a wrong password, 429 after too many."""
    accounts, name = _accounts(request), body.name.strip().lower()
    if body.key:
        principal = await _tried(request, name, accounts.holder, body.key)
    else:
        principal = await _tried(request, name, accounts.authenticate, name, body.password)
    if principal is None:
        raise APIError(401, "The name or the password is wrong.", code="wrong_password")
    if (old := guard.session_token(request.scope)) is not None:
        await asyncio.to_thread(accounts.close_session, old)
    token = await asyncio.to_thread(accounts.open_session, principal)
    response.headers["set-cookie"] = guard.session_cookie(request.scope, token, SESSION_SECONDS)
    return _me(principal, token)


@router.post("/api/logout", status_code=204)
async def logout(request: Request, response: Response) -> None:
    """Sign out, here and for this cookie wherever it is."""
    if (token := guard.session_token(request.scope)) is not None:
        await asyncio.to_thread(_accounts(request).close_session, token)
        response.headers["set-cookie"] = guard.session_cookie(request.scope, "", 0)


@router.post("/api/password", status_code=204)
async def change_password(body: NewPassword, request: Request) -> None:
    """Change one's own password; every session of the name ends."""
    accounts, name = _accounts(request), request.state.principal.name
    if await _tried(request, name, accounts.authenticate, name, body.old) is None:
        raise APIError(403, "The old password is wrong.", code="wrong_password")
    await asyncio.to_thread(accounts.set_password, name, body.new)


@router.get("/api/accounts")
async def list_accounts(request: Request) -> dict[str, Any]:
    """All users and keys, for an administrator."""
    accounts = _accounts(request)
    users, keys = await asyncio.to_thread(lambda: (accounts.users(), accounts.keys()))
    return {"users": [asdict(user) for user in users], "keys": [asdict(key) for key in keys]}


@router.post("/api/accounts/users", status_code=201)
async def add_user(body: NewUser, request: Request) -> User:
    """Add a user."""
    return await asyncio.to_thread(_accounts(request).add_user, body.name, password=body.password, role=body.role)


@router.delete("/api/accounts/users/{name}", status_code=204)
async def remove_user(name: str, request: Request, keep_conversations: bool = False) -> None:
    """Take a user away, with what they said unless it is kept. Not oneself: nobody might be left who can."""
    if name == request.state.principal.name:
        raise APIError(409, "You cannot remove yourself; another administrator can.", code="own_account")
    await asyncio.to_thread(_accounts(request).remove_user, name, keep_conversations=keep_conversations)


@router.post("/api/accounts/keys", status_code=201)
async def add_key(body: NewKey, request: Request) -> dict[str, Any]:
    """Make a key; the answer has the key itself, this once."""
    limits = Limits(**body.model_dump(exclude={"owner", "name"}))
    secret, key = await asyncio.to_thread(_accounts(request).add_key, body.owner, name=body.name, limits=limits)
    return {"secret": secret, **asdict(key)}


@router.delete("/api/accounts/keys/{id}", status_code=204)
async def remove_key(id: str, request: Request) -> None:
    """Take a key away."""
    await asyncio.to_thread(_accounts(request).remove_key, id)


async def _tried(request: Request, name: str, check: Callable[..., Principal | None], *given: str) -> Principal | None:
    """What `check` says, as often as the throttle lets this name at this address ask. Raises APIError 429 and 503."""
    throttle: LoginThrottle = request.app.state.login_throttle
    address = request.client.host if request.client else ""
    if (seconds := throttle.wait(name, address)) > 0:
        message = f"Too many tries to sign in. Please try again in {math.ceil(seconds)} seconds."
        raise APIError(429, message, code="too_many_logins", retry_after=math.ceil(seconds))
    if throttle.crowded:
        raise APIError(503, "Too many people are signing in; please try again.", code="overloaded", retry_after=3)
    throttle.tried(name, address)
    async with throttle.turn():
        principal = await asyncio.to_thread(check, *given)
    if principal is not None:
        throttle.right(name, address)
    return principal


def _accounts(request: Request) -> Accounts:
    accounts = request.app.state.accounts
    assert isinstance(accounts, Accounts)
    return accounts


def _me(principal: Principal | None, token: str | None) -> dict[str, Any]:
    key: Key | None = None if principal is None else principal.key
    return {
        "name": "" if principal is None else principal.name,
        "role": None if principal is None else principal.role,
        "key": None if key is None else key.name,
        "signed_in": principal is not None,
        "local": principal is not None and principal.name == "",
        "may": [] if principal is None else [name for name in PERMISSIONS if principal.may(name)],
        "csrf": guard.csrf_token(None if principal is None else token),
    }


def throttle() -> LoginThrottle:
    """One for an application, at `app.state.login_throttle`."""
    return LoginThrottle()
