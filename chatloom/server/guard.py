"""The door: which requests are let in, as whom, and the headers that every answer leaves with.

On one's own machine nobody signs in: a server that is bound to loopback, without users and without a key file, takes
whoever comes for its one person. What then keeps other web sites out is the Host header (DNS rebinding: Jackson et al.
2007) and the Origin (cross-site requests). Everywhere, a write that a browser sends must come from our own page and
carry `X-CSRF-Token`, which no other site can add; nor can it add a key, so a request with one is exempt.
Everything here is plain ASGI and buffers nothing.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatloom.server import errors
from chatloom.server.accounts import LOCAL, Accounts, Principal
from chatloom.server.errors import APIError

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # "no-referrer" would make our own forms' Origin "null"
    "permissions-policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
# Open to everybody: nobody is even looked up for these, and only reads are.
OPEN = ("/health", "/favicon.ico")
OPEN_FOLDER = "/web/"
# Without signing in: the page itself, and what signs in. Everything else needs a principal.
PUBLIC = ("/", "/api/me", "/api/login", "/api/logout")
# Paths that need a permission of `accounts.PERMISSIONS`, with all below them.
PERMISSION_OF_PATH = {
    "/metrics": "read_metrics",
    "/api/requests": "read_requests",
    "/api/accounts": "manage_accounts",
}
_log = logging.getLogger("chatloom.server")
_HARMLESS = ("GET", "HEAD", "OPTIONS")
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_PROXIED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")


@dataclass(frozen=True)
class Door:
    """Where the server is and by which names it may be called.

    `allowed_hosts` are the names (without a port) that a Host header may have; none: those of loopback when that is
    where the server is bound, and any name elsewhere, where everybody has to sign in.
    """

    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    def is_called(self, name: str) -> bool:
        """Whether a Host header may have this name."""
        if name in self.allowed_hosts:
            return True
        own = f"[{self.host}]" if ":" in self.host else self.host
        return name in (*_LOOPBACK_NAMES, own) if self.on_loopback else not self.allowed_hosts


def check_door(door: Door, accounts: Accounts) -> None:
    """Raise ValueError where strangers would reach a server that asks nobody who they are."""
    if not door.on_loopback and not accounts.demanded():
        raise ValueError(
            f"--host {door.host} lets others on the network in, and there is neither an API key nor a user, so anyone "
            "could read and write everything. Give --api-key-file F (one key a line), or add a user first "
            "(chatloom accounts add-user NAME --role admin --database D), or leave --host at 127.0.0.1"
        )


class Guard:
    """Middleware, within `Observe`: sets `request.state.principal` (None on public paths without one) or refuses."""

    def __init__(self, app: ASGIApp, *, accounts: Accounts, door: Door = Door()) -> None:
        self._app, self._accounts, self._door = app, accounts, door
        # Of its own: who asks is known while other threads are busy with long prompts.
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="guard")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        guarded = Sender(send, scope["path"])
        try:
            scope.setdefault("state", {})["principal"] = await self._admit(scope)
        except APIError as error:
            await error.response()(scope, receive, guarded)
            return
        except OSError as error:
            _log.error("%s", error)
            busy = APIError(503, "The server's database does not answer; please try again.", retry_after=1)
            await busy.response()(scope, receive, guarded)
            return
        try:
            await self._app(scope, receive, guarded)
        except Exception as error:
            if not guarded.started:  # what nobody foresaw leaves with the headers too
                await errors.of(error).response()(scope, receive, guarded)
            raise

    async def _admit(self, scope: Scope) -> Principal | None:
        """Who this is. Raises APIError where it may not come in."""
        headers, path, method = Headers(scope=scope), scope["path"], scope["method"]
        _check_path(path)
        host = self._check_host(headers)
        if method in _HARMLESS and (path in OPEN or path.startswith(OPEN_FOLDER)):
            return None
        public, bearer = path in PUBLIC, _bearer(headers)
        if bearer is None and (not public or method not in _HARMLESS):
            _check_site(headers, host)
        token = None if bearer is not None else session_token(scope)
        local = self._door.on_loopback and not any(name in headers for name in _PROXIED)
        loop = asyncio.get_running_loop()
        principal = await loop.run_in_executor(self._threads, self._who, bearer, token, local)
        if principal is None:
            if not public:
                raise _stranger(bearer)
            token = None
        if method not in _HARMLESS and bearer is None and (token is not None or path.startswith("/api/")):
            _check_csrf(headers, token)
        for prefix, permission in PERMISSION_OF_PATH.items():
            if path == prefix or path.startswith(f"{prefix}/"):
                demand(principal, permission)
        return principal

    def _who(self, bearer: str | None, token: str | None, local: bool) -> Principal | None:
        if local and not self._accounts.demanded():
            return LOCAL
        if bearer is not None:
            return self._accounts.holder(bearer)
        return None if token is None else self._accounts.session(token)

    def _check_host(self, headers: Headers) -> str:
        given = [value.strip().lower() for value in headers.getlist("host")]
        match = _HOST.fullmatch(given[0]) if len(given) == 1 else None
        if match is None:
            raise APIError(400, "The request needs one Host header, which names this server.", code="invalid_host")
        if not self._door.is_called(match["name"]):
            raise APIError(
                403,
                f"This server does not answer to the name {match['name']!r}. If it is meant to, start it with "
                f"--allowed-hosts {match['name']}.",
                code="host_not_allowed",
            )
        return given[0]


def demand(principal: Principal | None, permission: str) -> Principal:
    """The principal, if its role has the permission. Raises APIError 401 or 403."""
    if principal is None:
        raise _stranger(None)
    if not principal.may(permission):
        raise APIError(403, f"The role {principal.role!r} may not do this ({permission}).", code="not_permitted")
    return principal


def csrf_token(token: str | None) -> str:
    """What `X-CSRF-Token` must be for a session's token; without a session it only has to be there."""
    return "local" if token is None else hashlib.sha256(f"csrf {token}".encode("utf-8", "replace")).hexdigest()[:32]


# --- cookies ------------------------------------------------------------------------------------------------------


def session_token(scope: Scope) -> str | None:
    """The token in the session's cookie."""
    value = HTTPConnection(scope).cookies.get(_cookie_name(scope), "")
    return value if 0 < len(value) <= 128 else None


def session_cookie(scope: Scope, token: str, seconds: float) -> str:
    """The `Set-Cookie` that keeps a token; 0 seconds: that takes it away."""
    secure = "; Secure" if scope["scheme"] == "https" else ""
    return f"{_cookie_name(scope)}={token}; Path=/; Max-Age={seconds:.0f}; HttpOnly; SameSite=Strict{secure}"


def _cookie_name(scope: Scope) -> str:
    """`__Host-` lets no other host of the domain set it; browsers take that prefix over TLS only."""
    return "__Host-chatloom" if scope["scheme"] == "https" else "chatloom"


# --- checks -------------------------------------------------------------------------------------------------------


def _check_path(path: str) -> None:
    """No path that means another one: the router and the files below see what this file has judged."""
    parts = path.split("/")
    if "\\" in path or "\0" in path or ".." in parts or "." in parts or "" in parts[1:-1] or not path.startswith("/"):
        raise APIError(404, "Unknown request URL.", type="invalid_request_error", code="unknown_url")


def _check_site(headers: Headers, host: str) -> None:
    """No request that a page of another site had a browser send."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    foreign = origin is not None and (origin == "null" or urlsplit(origin).netloc.lower() != host)
    if foreign or site in ("cross-site", "same-site"):
        message = (
            "Requests from other web sites are not accepted. (If this is our own page behind a proxy: let the proxy "
            "pass the Host header on.)"
        )
        raise APIError(403, message, code="cross_site_request")


def _check_csrf(headers: Headers, token: str | None) -> None:
    given = headers.get("x-csrf-token")
    right = given is not None and (token is None or hmac.compare_digest(given.encode(), csrf_token(token).encode()))
    if not right:
        message = "This write needs the header X-CSRF-Token with the csrf of /api/me; please reload the page."
        raise APIError(403, message, code="csrf_token_mismatch")


def _bearer(headers: Headers) -> str | None:
    """The key of `Authorization: Bearer KEY`; any other kind, which browsers may send by themselves, is none."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def _stranger(bearer: str | None) -> APIError:
    if bearer:
        return APIError(401, "Incorrect API key provided.", type="invalid_request_error", code="invalid_api_key")
    message = (
        "You didn't provide an API key. Send it in an Authorization header: `Authorization: Bearer YOUR_KEY`; "
        "on the page, sign in."
    )
    return APIError(401, message, type="invalid_request_error", code="missing_api_key")


class Sender:
    """Adds the security headers that the application has not set; answers about people are not to be cached."""

    def __init__(self, send: Send, path: str) -> None:
        self._send, self._private = send, path.startswith(("/api/", "/v1/"))
        self.started = False

    async def __call__(self, message: Message) -> None:
        """One part of the answer."""
        if message["type"] == "http.response.start":
            self.started = True
            message = {**message, "headers": list(message.get("headers", []))}
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            if self._private:
                headers.setdefault("cache-control", "no-store")
        await self._send(message)


def names(text: Sequence[str]) -> tuple[str, ...]:
    """`--allowed-hosts` as `Door` takes them. Raises ValueError for what is no host name."""
    found = tuple(name.strip().lower() for name in text)
    for name in found:
        match = _HOST.fullmatch(name)
        if match is None or match["name"] != name:
            raise ValueError(f"--allowed-hosts {name!r}: give names such as chat.example.com, without scheme and port")
    return found
