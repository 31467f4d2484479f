"""How large a request may be and how long it may take to arrive: nobody holds memory or a connection by being slow.

A body that is too large is refused when its `Content-Length` says so, and otherwise (chunked) as soon as it has come
past the limit. uvicorn has no limit on the time that the head of a request takes, nor on a reader who takes nothing;
`patient_protocol` is its HTTP/1.1 with both.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from chatloom.server.errors import APIError

MEBIBYTE = 2**20
MOST_BYTES = 8 * MEBIBYTE  # of a body; a million tokens of text is about half of it
MOST_BYTES_AT = {"/api/import": 32 * MEBIBYTE}  # the page sends an export in parts, and no conversation is cut
BODY_SECONDS = 60.0
HEAD_SECONDS = 10.0
STALL_SECONDS = 60.0


class BodyLimits:
    """Middleware: 413 for a body that is too large, 408 for one that takes too long; all else passes unbuffered."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        most_bytes: int = MOST_BYTES,
        most_bytes_at: Mapping[str, int] = MOST_BYTES_AT,
        seconds: float = BODY_SECONDS,
    ) -> None:
        self._app, self._most, self._most_at, self._seconds = app, most_bytes, most_bytes_at, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = max(self._most, self._most_at.get(scope["path"], 0))
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not declared.isdigit() or int(declared[:20]) > most:
            await _too_large(most).response()(scope, receive, send)
            return
        body = _Body(receive, send, most, self._seconds)
        try:
            await self._app(scope, body.receive, body.send)
        except Exception:
            if body.refusal is None:
                raise
        if body.refusal is not None and not body.answered:
            await body.refusal.response()(scope, receive, send)


class _Stop(Exception):
    """The body will not be read on."""


class _Body:
    """One request's way in, counted and timed; what the application answers to a body cut off is not sent."""

    def __init__(self, receive: Receive, send: Send, most: int, seconds: float) -> None:
        self._receive, self._send, self._most, self._seconds = receive, send, most, seconds
        self._count, self._complete = 0, False
        self._deadline = asyncio.get_running_loop().time() + seconds
        self.refusal: APIError | None = None
        self.answered = False

    async def receive(self) -> Message:
        """The next part of the body; once it is complete, whatever comes, without a limit."""
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            self.refusal = _too_slow(self._seconds)
            raise _Stop from None
        if message["type"] == "http.request":
            self._count += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._count > self._most:
                self.refusal = _too_large(self._most)
                raise _Stop
        return message

    async def send(self, message: Message) -> None:
        """What the application answers, unless it is about a body that has been refused."""
        if self.refusal is None or self.answered:
            self.answered = True
            await self._send(message)


def _too_large(most: int) -> APIError:
    size = f"{most / MEBIBYTE:g} MiB" if most >= MEBIBYTE else f"{most} bytes"
    message = f"The request body is larger than {size}, the most that this server takes here."
    return APIError(413, message, type="invalid_request_error", code="request_too_large")


def _too_slow(seconds: float) -> APIError:
    message = f"The request body did not arrive within {seconds:g} seconds."
    return APIError(408, message, type="invalid_request_error", code="request_timeout")


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose request head, or whose reader, keeps it waiting too long.

    The timer of the head starts with the connection and with each first byte after an answer, and so it also ends a
    body that goes on after it has been refused.
    """

    head_seconds = HEAD_SECONDS
    stall_seconds = STALL_SECONDS
    _head: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a first head."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """A head that is complete begins a new cycle and stops the timer."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            _cancel(self._head)
            self._head = None
        elif before is None or before.response_complete:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        _cancel(self._head)
        _cancel(self._stall)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The reader is slower than we write."""
        super().pause_writing()
        _cancel(self._stall)
        self._stall = self.loop.call_later(self.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The reader has taken what was waiting."""
        super().resume_writing()
        _cancel(self._stall)
        self._stall = None

    def _await_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(self.head_seconds, self._too_late)

    def _too_late(self) -> None:
        self._head = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def patient_protocol(*, head_seconds: float = HEAD_SECONDS, stall_seconds: float = STALL_SECONDS) -> type[H11Protocol]:
    """`PatientProtocol` with other times."""
    return type("PatientProtocol", (PatientProtocol,), {"head_seconds": head_seconds, "stall_seconds": stall_seconds})


def uvicorn_options() -> dict[str, Any]:
    """What `uvicorn.Config` must be given for this to hold."""
    return {"http": PatientProtocol, "ws": "none", "server_header": False, "timeout_keep_alive": 5}
