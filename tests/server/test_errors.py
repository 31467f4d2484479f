"""Bad input over a plain connection: each an error body of OpenAI's, and the server goes on."""

import errno
import json
import logging
import socket
import time
from typing import Any

import httpx
import pytest

from chatloom.server.errors import APIError
from chatloom.testing.serving import Running

CHAT = "/v1/chat/completions"
FINE = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


def send(server: Running, body: bytes, *, path: str = CHAT, kind: str = "application/json") -> httpx.Response:
    return httpx.post(f"{server.base_url}{path}", content=body, headers={"Content-Type": kind}, timeout=30)


def check(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert response.headers["x-request-id"].startswith("req_")
    return error


def logged_error(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    """The one error that is logged, maybe after the answer."""
    deadline = time.monotonic() + 5
    while not (failed := [record for record in caplog.records if record.levelname == "ERROR"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    [record] = failed
    return record


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "no body"),
        (b"{", "could not parse the JSON"),
        (b'{"model": "tiny",}', "could not parse the JSON"),
        (b"[]", "JSON object"),
        (b"null", "JSON object"),
        (b'"text"', "JSON object"),
        (b'{"model": "\xff\xfe"}', "pars"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', "lone surrogate"),
        (b'{"model": "\\ud800", "messages": []}', "model"),
        (b'{"model": "tiny", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "pars"),
        (json.dumps(FINE).replace("2", "1e999").encode(), "max_tokens"),
        (json.dumps(FINE).replace("2", "9" * 5000).encode(), "pars"),
        (json.dumps(FINE | {"seed": 2**70}).encode(), "seed"),
        (json.dumps(FINE | {"temperature": float("nan")}).encode(), "temperature"),
        (json.dumps(FINE | {"model": "a" * 100_000}).encode(), "model"),
        (json.dumps(FINE | {"messages": {"role": "user"}}).encode(), "messages"),
        (json.dumps(FINE | {"unknown \ud800 field": 1}).encode(), "unicode"),
    ],
)
def test_a_body_that_is_no_request(tiny_server: Running, body: bytes, says: str) -> None:
    error = check(send(tiny_server, body), 400)
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert send(tiny_server, json.dumps(FINE).encode()).status_code == 200


def test_another_kind_of_content_is_told_which_one_is_right(tiny_server: Running) -> None:
    error = check(send(tiny_server, json.dumps(FINE).encode(), kind="text/plain"), 400)
    assert "application/json" in error["message"]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_prompt_of_ten_megabytes_is_too_large_and_one_of_five_too_long(tiny_server: Running, path: str) -> None:
    def body(size: int) -> bytes:
        text = "a" * size
        own = {"prompt": text} if path == "/v1/completions" else {"messages": [{"role": "user", "content": text}]}
        return json.dumps({"model": "tiny"} | own).encode()

    check(send(tiny_server, body(10_000_000), path=path), 413)
    error = check(send(tiny_server, body(5_000_000), path=path), 400)
    assert error["code"] == "context_length_exceeded"
    assert "512 tokens" in error["message"]


def test_paths_and_methods_that_there_are_not(tiny_server: Running) -> None:
    client = httpx.Client(base_url=tiny_server.base_url)
    assert check(client.get("/v1/nothing"), 404)["code"] == "unknown_url"
    assert check(client.get(CHAT), 405)["code"] == "method_not_allowed"
    assert check(client.get("/v1/models/none/such"), 404)["code"] == "model_not_found"


def test_a_client_that_goes_away_in_the_middle_of_its_body_harms_nobody(tiny_server: Running) -> None:
    host, port = tiny_server.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode() + b'{"model": "tiny"')
    assert send(tiny_server, json.dumps(FINE).encode()).status_code == 200


def test_what_nobody_foresaw_tells_nothing_of_itself(
    tiny_server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> None:
        raise KeyError("the secret text")

    served = tiny_server.models["tiny"]
    monkeypatch.setattr(type(served), "chat_tokens", fails)
    with caplog.at_level("INFO", logger="chatloom.server"):
        response = send(tiny_server, json.dumps(FINE).encode())
    error = check(response, 500)
    assert error["type"] == "server_error"
    record = logged_error(caplog)
    assert record.fields["error"] == "KeyError"  # type: ignore[attr-defined]
    assert "secret" not in response.text + caplog.text
    assert record.fields["id"] == response.headers["x-request-id"]  # type: ignore[attr-defined]


def test_an_error_says_when_to_come_again() -> None:
    response = APIError(503, "Later.", retry_after=0.2).response()
    assert response.headers["Retry-After"] == "1"
    assert json.loads(bytes(response.body))["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    ("number", "status", "code", "words"),
    [
        (errno.ENOSPC, 507, "disk_full", "free some space"),
        (errno.EBUSY, 503, "database_busy", "try again"),
        (errno.EACCES, 507, "database_read_only", "who owns"),
        (errno.ECONNREFUSED, 503, "database_unreachable", "cannot be reached"),
    ],
)
def test_a_database_that_cannot_be_written_is_told_without_its_place(
    tiny_server: Running,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    status: int,
    code: str,
    words: str,
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError(number, "/secret/feedback.db: it could not be done")

    monkeypatch.setattr(type(tiny_server.app.state.store), "create_conversation", fails)
    address = f"{tiny_server.base_url}/api/conversations"
    response = httpx.post(address, json={}, headers={"X-CSRF-Token": "local"})
    error = check(response, status)
    assert (error["code"], error["type"]) == (code, "server_error")
    assert words in error["message"]
    assert "secret" not in response.text
    assert "/secret/feedback.db" in caplog.text  # the operator is told
    assert ("retry-after" in response.headers) == (status == 503)


def test_another_error_of_the_system_stays_one_that_nobody_foresaw(
    tiny_server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, "the secret file")

    monkeypatch.setattr(type(tiny_server.app.state.store), "create_conversation", fails)
    address = f"{tiny_server.base_url}/api/conversations"
    with caplog.at_level("INFO", logger="chatloom.server"):
        error = check(httpx.post(address, json={}, headers={"X-CSRF-Token": "local"}), 500)
    assert "secret" not in error["message"]
    assert logged_error(caplog).fields["error"] == "FileNotFoundError"  # type: ignore[attr-defined]
