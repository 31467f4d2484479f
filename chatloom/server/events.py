"""Server-sent events: the one writer of streams.

`EventStream` writes what an async generator gives, and ends it, at once, when the client goes away or the server is
cancelled: the generator's `finally` is where its work is given up. A client that reads slowly holds up nobody: its
writer waits for it, and what the engine makes meanwhile is kept by the generation.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"


def event(data: Any, *, name: str | None = None) -> bytes:
    """One event; `data` becomes JSON on a line."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {text}\n\n".encode("utf-8", "replace")


class EventStream(Response):
    """A response of events, written as they come."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        headers: dict[str, str] | None = None,
        background: BackgroundTask | None = None,
    ) -> None:
        """`events` are whole events as bytes (`event`, `DONE`)."""
        self.status_code, self.background, self.body = 200, background, b""
        self._events = events
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})
        with contextlib.suppress(KeyError):
            del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until the events end or the client has gone."""
        writing = asyncio.ensure_future(self._write(send))
        leaving = asyncio.ensure_future(gone(receive))
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            for task in (writing, leaving):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await writing
            await self._events.aclose()
        if self.background is not None:
            await self.background()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._events:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def gone(receive: Receive) -> None:
    """Wait until the client has gone; of a request whose body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass
