"""What a key may ask for: buckets by hand, OpenAI's 429 and headers, requests at once, streams that stay streams."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from chatloom.server import errors
from chatloom.server.accounts import Key, Principal
from chatloom.server.limits import NO_LIMITS, Bucket, Limits, RateLimits, duration, meter


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


class AsKey:
    """In place of the guard: everybody comes with the key that the header names."""

    def __init__(self, app: Any, limits: dict[str, Limits]) -> None:
        self._app, self.limits = app, limits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        name = dict(scope["headers"]).get(b"key", b"").decode()
        key = Key(f"key-{name}", name, "ana", "user", self.limits.get(name, NO_LIMITS)) if name else None
        scope.setdefault("state", {})["principal"] = Principal("ana", "user", key)
        await self._app(scope, receive, send)


def api() -> FastAPI:
    """`POST /tokens?prompt=3&answer=4` uses as many."""
    app = FastAPI()
    errors.install(app)

    @app.post("/tokens")
    async def tokens(prompt: int = 0, answer: int = 0) -> str:
        meter().admit(prompt)
        meter().spend(answer)
        return "ok"

    @app.get("/tokens")
    async def listed() -> str:
        return "ok"

    return app


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def visitor(clock: Clock) -> Callable[..., TestClient]:
    def make(default: Limits = NO_LIMITS, **limits: Limits) -> TestClient:
        app = AsKey(RateLimits(api(), default=default, clock=clock), limits)
        return TestClient(app)

    return make


def post(client: TestClient, key: str = "a", **query: int) -> Any:
    return client.post("/tokens", params=query, headers={"key": key} if key else {})


def test_a_bucket_by_hand() -> None:
    bucket = Bucket(60, 60.0, now=0.0)  # one a second
    bucket.take(60, 0.0)
    assert bucket.level(0.0) == 0
    assert bucket.seconds_until(5, 0.0) == 5
    assert bucket.level(5.0) == 5
    bucket.take(15, 5.0)
    assert bucket.level(5.0) == -10
    assert bucket.seconds_until_full(5.0) == 70
    assert bucket.level(1000.0) == 60


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 4)), max_size=60))
def test_whoever_waits_as_long_as_told_is_let_in_and_never_more_than_the_limit_passes(asks: Any) -> None:
    bucket, now, taken = Bucket(10, 20.0, now=0.0), 0.0, 0
    for pause, amount in asks:
        now += pause
        now += bucket.seconds_until(amount, now) + 1e-9
        assert bucket.seconds_until(amount, now) == pytest.approx(0, abs=1e-6)
        bucket.take(amount, now)
        taken += amount
        assert taken <= 10 + now / 2 + 1e-3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.1201, "121ms"),
        (1, "1s"),
        (1.44, "1.5s"),
        (20, "20s"),
        (59.99, "1m0s"),
        (360, "6m0s"),
        (90.5, "1m30.5s"),
        (3602, "1h0m2s"),
        (86400, "24h0m0s"),
    ],
)
def test_durations_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_requests_a_minute(visitor: Callable[..., TestClient], clock: Clock) -> None:
    client = visitor(a=Limits(requests_per_minute=3))
    for left in (2, 1, 0):
        response = post(client)
        assert response.status_code == 200
        assert response.headers["x-ratelimit-limit-requests"] == "3"
        assert response.headers["x-ratelimit-remaining-requests"] == str(left)
        assert response.headers["x-ratelimit-reset-requests"] == duration(20 * (3 - left))
    response = post(client)
    assert response.status_code == 429
    assert response.json() == {
        "error": {
            "message": "Rate limit reached for a on requests per min (RPM): Limit 3, Used 3, Requested 1. "
            "Please try again in 20s.",
            "type": "requests",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    }
    assert response.headers["retry-after"] == "20"
    assert response.headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-ratelimit-limit-tokens" not in response.headers
    assert client.get("/tokens", headers={"key": "a"}).status_code == 200  # reading costs nothing
    assert post(client, "b").status_code == 200  # another key is another matter
    clock.now += 20
    assert post(client).status_code == 200
    assert post(client).status_code == 429


def test_tokens_a_minute_count_the_prompt_before_and_the_answer_after(
    visitor: Callable[..., TestClient], clock: Clock
) -> None:
    client = visitor(a=Limits(tokens_per_minute=600))
    response = post(client, prompt=100)
    assert response.headers["x-ratelimit-limit-tokens"] == "600"
    assert response.headers["x-ratelimit-remaining-tokens"] == "500"
    assert post(client, prompt=100, answer=700).status_code == 200  # an answer under way is not cut off
    response = post(client)
    assert response.status_code == 429
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
    assert "on tokens per min (TPM): Limit 600, Used 900, Requested 1" in error["message"]
    assert response.headers["retry-after"] == "31"  # 300 too many and one, at 10 a second
    clock.now += 31
    response = post(client, prompt=100)  # which there are not
    assert response.status_code == 429
    assert "Requested 100. Please try again in 9s." in response.json()["error"]["message"]
    clock.now += 9
    assert post(client, prompt=100).status_code == 200


def test_a_prompt_that_will_never_fit_says_so(visitor: Callable[..., TestClient]) -> None:
    client = visitor(a=Limits(tokens_per_minute=600))
    response = post(client, prompt=601)
    assert response.status_code == 429
    assert "Request too large for a on tokens per min (TPM): Limit 600, Requested 601" in response.text
    assert "retry-after" not in response.headers


def test_tokens_a_day(visitor: Callable[..., TestClient], clock: Clock) -> None:
    client = visitor(a=Limits(tokens_per_minute=1000, tokens_per_day=864))
    response = post(client, prompt=800)
    assert response.headers["x-ratelimit-limit-tokens"] == "864"  # the one that has least left
    response = post(client, prompt=100)
    assert response.status_code == 429
    assert "on tokens per day (TPD): Limit 864, Used 800, Requested 100. Please try again in 1h0m0s" in response.text
    clock.now += 3600
    assert post(client, prompt=100).status_code == 200


def test_who_has_no_key_or_no_limits_has_none(visitor: Callable[..., TestClient]) -> None:
    client = visitor(a=Limits(requests_per_minute=1))
    for key in ("", "b"):
        for _ in range(5):
            response = post(client, key, prompt=10**9)
            assert response.status_code == 200
            assert not any(name.startswith("x-ratelimit") for name in response.headers)


def test_the_servers_own_limits_are_for_keys_that_name_none(visitor: Callable[..., TestClient]) -> None:
    client = visitor(Limits(requests_per_minute=1), b=Limits(requests_per_minute=2))
    assert [post(client, "a").status_code for _ in range(2)] == [200, 429]
    assert [post(client, "b").status_code for _ in range(3)] == [200, 200, 429]


def test_limits_that_change_begin_anew() -> None:
    app = AsKey(RateLimits(api(), clock=Clock()), {"a": Limits(requests_per_minute=1)})
    client = TestClient(app)
    assert [post(client).status_code for _ in range(2)] == [200, 429]
    app.limits["a"] = Limits(requests_per_minute=2)
    assert [post(client).status_code for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True])
def test_wrong_limits(value: Any) -> None:
    with pytest.raises(ValueError, match=r"tokens_per_day is .* a whole number from 1, or left out for no limit"):
        Limits(tokens_per_day=value)


# --- while it goes on ---------------------------------------------------------------------------------------------


class Call:
    """One request to an ASGI application, which goes on as long as the application does."""

    def __init__(self, app: Any, path: str = "/stream", method: str = "POST") -> None:
        self.sent: list[Any] = []
        self._end = asyncio.Event()
        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": [(b"key", b"a")]}
        self.task = asyncio.create_task(app(scope, self._receive, self._send))
        self._asked = False

    async def _receive(self) -> Any:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._end.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    def leave(self) -> None:
        self._end.set()


def streaming(gate: asyncio.Event) -> FastAPI:
    app = FastAPI()

    @app.post("/stream")
    async def stream(request: Request) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"first"
            await gate.wait()
            meter().spend(7)
            yield b"second"

        return StreamingResponse(pieces())

    return app


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def test_so_many_at_once_and_pieces_leave_as_they_come() -> None:
    async def run() -> None:
        gate = asyncio.Event()
        app = AsKey(RateLimits(streaming(gate)), {"a": Limits(concurrent_requests=2, tokens_per_minute=100)})
        running = [Call(app), Call(app)]
        await settle()
        for call in running:
            assert [message.get("body") for message in call.sent[1:]] == [b"first"]  # nothing waits for the end
        third = Call(app)
        await settle()
        assert third.status == 429
        assert b"requests at once: Limit 2, Used 2, Requested 1. Please try again in 1s." in third.sent[1]["body"]
        running[0].leave()  # who leaves makes room
        await settle()
        assert running[0].task.done()
        fourth = Call(app)
        await settle()
        assert fourth.status == 200
        gate.set()
        await asyncio.gather(running[1].task, fourth.task)
        assert fourth.sent[2]["body"] == b"second"
        fifth = Call(app)
        await settle()
        headers = dict(fifth.sent[0]["headers"])
        assert headers[b"x-ratelimit-remaining-tokens"] == b"86"  # 7 of each of the two that came to their end
        fifth.leave()
        await fifth.task

    asyncio.run(run())


def test_what_goes_on_after_the_answer_is_still_paid_for() -> None:
    """The page's answers are made in a task of their own, which outlives the request that began it."""
    left: list[str] = []

    async def run() -> None:
        app, tasks = FastAPI(), []

        @app.post("/stream")
        async def begin() -> str:
            async def go_on() -> None:
                await asyncio.sleep(0.01)
                meter().spend(30)

            tasks.append(asyncio.create_task(go_on()))
            return "begun"

        limited = AsKey(RateLimits(app, clock=lambda: 0.0), {"a": Limits(tokens_per_minute=100)})
        await Call(limited).task
        await asyncio.gather(*tasks)
        call = Call(limited)
        await call.task
        left.append(dict(call.sent[0]["headers"])[b"x-ratelimit-remaining-tokens"].decode())

    asyncio.run(run())
    assert left == ["70"]


def test_a_request_that_fails_gives_its_place_back() -> None:
    app = FastAPI()

    @app.post("/tokens")
    async def broken() -> None:
        raise RuntimeError("no")

    limited = AsKey(RateLimits(app), {"a": Limits(concurrent_requests=1)})
    client = TestClient(limited, raise_server_exceptions=False)
    assert [post(client).status_code for _ in range(3)] == [500, 500, 500]
