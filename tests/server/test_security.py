"""Security on a real server with the official client: its exceptions are those that OpenAI's own answers raise."""

import logging
import socket
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from chatloom.feedback.store import Store
from chatloom.server.accounts import ROLES
from chatloom.server.app import Settings
from chatloom.server.key_file import KeyFile
from chatloom.server.limits import Limits
from chatloom.testing.serving import Running, tiny

KEY = "sk-first-key-of-the-file"
MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


def client_of(running: Running, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.base_url}/v1", api_key=key, max_retries=0, timeout=30)


@pytest.fixture
def guarded(serving: Callable[..., Running], tmp_path: Path) -> Running:
    (tmp_path / "keys").write_text(
        f"{KEY} name=ana\nsk-second-key-of-the-file name=ben tokens_per_minute=60\n"
        "sk-third-key-of-the-file requests_per_minute=2\n"
    )
    settings = Settings(key_file=KeyFile(tmp_path / "keys", ROLES), limits=Limits(tokens_per_day=10_000))
    return serving(tiny=tiny(), store=Store.open(tmp_path / "feedback.db"), settings=settings)


def test_only_a_key_opens(guarded: Running) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        client_of(guarded, "sk-wrong-key").chat.completions.create(model="tiny", messages=MESSAGES)
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        client_of(guarded, "sk-wrong-key").models.list()
    assert [model.id for model in client_of(guarded, KEY).models.list()] == ["tiny"]


def test_tokens_that_were_used_are_counted(guarded: Running) -> None:
    client = client_of(guarded, KEY)
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=MESSAGES, max_tokens=4, n=2)
    usage = raw.parse().usage
    assert usage is not None
    assert raw.headers["x-ratelimit-limit-tokens"] == "10000"
    assert "x-ratelimit-limit-requests" not in raw.headers
    with client.chat.completions.with_streaming_response.create(
        model="tiny", messages=MESSAGES, max_tokens=4, stream=True
    ) as stream:
        left = int(stream.headers["x-ratelimit-remaining-tokens"])
        assert 10_000 - left == pytest.approx(usage.total_tokens + usage.prompt_tokens, abs=1)
        stream.read()


def test_too_many_tokens(guarded: Running) -> None:
    client = client_of(guarded, "sk-second-key-of-the-file")
    with pytest.raises(openai.RateLimitError, match="Request too large for ben"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 100}])

    def until_refused() -> None:
        for _ in range(10):
            client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=4)

    with pytest.raises(openai.RateLimitError) as caught:
        until_refused()
    assert (caught.value.type, caught.value.code) == ("tokens", "rate_limit_exceeded")
    assert "Rate limit reached for ben on tokens per min (TPM): Limit 60" in caught.value.message


def test_too_many_requests(guarded: Running) -> None:
    client = client_of(guarded, "sk-third-key-of-the-file")
    for _ in range(2):
        client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1)
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1)
    assert (caught.value.type, caught.value.response.headers["retry-after"]) == ("requests", "30")


def test_a_prompt_that_is_too_large_names_the_limit(tiny_server: Running) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        tiny_server.client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "x" * 10_000_000}]
        )
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
    assert "larger than 8 MiB" in caught.value.message
    assert tiny_server.client.models.list().data


@pytest.mark.parametrize(
    "path",
    [
        "/web/../app.py",
        "/web/%2e%2e/app.py",
        "/web/..%2fapp.py",
        "/web/%2e%2e%2fapp.py",
        "/web/%252e%252e/app.py",
        "/web/..%5capp.py",
        "/web//etc/passwd",
        "/web/%2fetc/passwd",
        "/web///etc/passwd",
        "//etc/passwd",
        "/web/index.html/../../app.py",
        "/web/%00",
        "/web/index.html%00.css",
        "/web/.",
        "/web/",
        "/web",
        "http://elsewhere/web/../app.py",
        "/web/%ff%fe",
        "/web/" + "a" * 5000,
        "/web/con%0d%0ax: y",
    ],
)
def test_no_path_leads_out_of_the_pages_folder(tiny_server: Running, path: str) -> None:
    """Written to the connection as they are: a client would put them right."""
    port = int(tiny_server.base_url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.split(b" ")[1] in (b"307", b"400", b"404")
    assert b"root:" not in answer
    assert b"create_app" not in answer


def test_no_key_is_in_the_log_or_the_database(
    guarded: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "openai"):  # the client's own log
        logging.getLogger(name).setLevel(logging.CRITICAL)
    wrong = "sk-a-key-that-is-wrong-and-long"
    client_of(guarded, KEY).chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1)
    with pytest.raises(openai.AuthenticationError):
        client_of(guarded, wrong).chat.completions.create(model="tiny", messages=MESSAGES)
    data = b"".join(path.read_bytes() for path in tmp_path.glob("feedback.db*"))
    for secret in (KEY, wrong):
        assert secret not in caplog.text
        assert secret.encode() not in data
