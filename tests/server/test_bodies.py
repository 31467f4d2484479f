"""Bodies that are too large or too slow, heads that never end, readers who never read: over real connections."""

import asyncio
import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from chatloom.server import errors
from chatloom.server.bodies import BodyLimits, patient_protocol, uvicorn_options

MOST = 100_000


class Seen:
    """What the application saw of its clients."""

    received = 0
    left = threading.Event()


def app_of(seen: Seen) -> FastAPI:
    app = FastAPI()
    errors.install(app)
    app.add_middleware(BodyLimits, most_bytes=MOST, most_bytes_at={"/import": 3 * MOST}, seconds=0.5)

    @app.post("/json")
    async def whole(body: dict[str, Any]) -> int:
        return len(body["text"])

    @app.post("/parts")
    @app.post("/import")
    async def parts(request: Request) -> int:
        seen.received = 0
        async for part in request.stream():
            seen.received += len(part)
        return seen.received

    @app.get("/flood")
    async def flood() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 65536
                    await asyncio.sleep(0)
            finally:
                seen.left.set()

        return StreamingResponse(pieces())

    @app.get("/slowly")
    async def slowly() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(3):
                await asyncio.sleep(0.25)
                yield b"."

        return StreamingResponse(pieces())

    return app


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen()


@pytest.fixture(scope="module")
def port(seen: Seen) -> Iterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))
    options = {**uvicorn_options(), "http": patient_protocol(head_seconds=0.4, stall_seconds=0.4)}
    server = uvicorn.Server(uvicorn.Config(app_of(seen), log_config=None, timeout_graceful_shutdown=1, **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    yield int(listening.getsockname()[1])
    server.should_exit = True
    thread.join(10)


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        yield connection


def until_closed(connection: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            data += part
    return data


def answer_of(connection: socket.socket) -> bytes:
    """One answer, head and body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += connection.recv(65536)
    return head + body


def post(port: int, path: str, body: Any) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return httpx.post(f"http://127.0.0.1:{port}{path}", content=body, headers=headers, timeout=10)


def chunked(size: int) -> Iterator[bytes]:
    for _ in range(size // 1000):
        yield b"x" * 1000


def test_a_body_at_the_limit_passes(port: int) -> None:
    text = json.dumps({"text": "x" * (MOST - 12)})
    assert len(text) == MOST
    assert post(port, "/json", text).json() == MOST - 12
    assert post(port, "/parts", chunked(MOST)).json() == MOST
    assert post(port, "/import", chunked(2 * MOST)).json() == 2 * MOST


@pytest.mark.parametrize("path", ["/json", "/parts", "/import"])
@pytest.mark.parametrize("length", ["declared", "chunked"])
def test_one_that_is_larger_is_refused_and_its_sender_reads_why(port: int, seen: Seen, path: str, length: str) -> None:
    size = 80 * MOST  # far more than the buffers of a connection
    response = post(port, path, b"x" * size if length == "declared" else chunked(size))
    assert response.status_code == 413
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "request_too_large")
    assert f"larger than {3 * MOST if path == '/import' else MOST} bytes" in error["message"]
    assert seen.received <= 3 * MOST + 65536 * 2


def test_a_declared_length_is_refused_before_a_byte_of_it_came(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(b"POST /json HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999999\r\n\r\n")
        assert answer_of(connection).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_takes_too_long(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(b"POST /json HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        for _ in range(40):  # a byte now and then does not win time
            connection.sendall(b"{")
            if select.select([connection], [], [], 0.1)[0]:
                break
        else:
            pytest.fail("bytes that come one by one are waited for as long as they come")
        answer = answer_of(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 0.5 seconds" in answer


def test_a_whole_body_has_all_the_time_for_its_answer(port: int) -> None:
    assert httpx.get(f"http://127.0.0.1:{port}/slowly", timeout=10).text == "..."


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_head_that_never_ends(port: int, start: bytes) -> None:
    with connected(port) as connection:
        began = time.monotonic()
        connection.sendall(start)
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 5:
                connection.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(1000):
                        break
                connection.sendall(b"" if not start else b"a")
        assert time.monotonic() - began < 5


def test_the_second_head_of_a_connection_may_not_be_slow_either(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer_of(connection).startswith(b"HTTP/1.1 404 ")
        connection.sendall(b"GET /none HTT")
        assert until_closed(connection) == b""


def test_a_connection_that_is_used_again_in_time_stays(port: int) -> None:
    with connected(port) as connection:
        for _ in range(3):
            connection.sendall(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer_of(connection).startswith(b"HTTP/1.1 404 ")
            time.sleep(0.25)


def test_a_reader_who_takes_nothing_is_left(port: int, seen: Seen) -> None:
    seen.left.clear()
    with connected(port) as connection:
        connection.sendall(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
        assert seen.left.wait(10)


def test_a_body_passes_unbuffered() -> None:
    """The application has the first part before the second is sent."""

    async def run() -> list[Any]:
        parts = [
            {"type": "http.request", "body": b"one", "more_body": True},
            {"type": "http.request", "body": b"two", "more_body": False},
            {"type": "http.disconnect"},
        ]
        got: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            for _ in range(3):
                got.append((await receive(), len(parts)))

        async def receive() -> Any:
            return parts.pop(0)

        scope = {"type": "http", "path": "/", "headers": []}
        await BodyLimits(app)(scope, receive, None)  # type: ignore[arg-type]
        return got

    got = asyncio.run(run())
    assert [(message.get("body"), left) for message, left in got] == [(b"one", 2), (b"two", 1), (None, 0)]
