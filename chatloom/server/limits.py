"""How much one key may ask for: requests and tokens a minute, tokens a day, and requests at once.

Each is a bucket that fills evenly and holds one minute's (or day's) worth, as OpenAI's do, so a client that waits as
long as `Retry-After` says is let in. A prompt is paid for before it is computed and an answer when it ends, so the
tokens may fall below zero; then nothing more is let in until they are made up. Counts are of this process: a restart
or a second server begins anew. The 429s and `x-ratelimit-*` headers are those of OpenAI's API reference.
"""

import math
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, fields

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatloom.server.errors import APIError

_DAY, _MINUTE = 86_400.0, 60.0


@dataclass(frozen=True)
class Limits:
    """What one key may use; None: as much as it likes."""

    # Requests a minute; None: no limit.
    requests_per_minute: int | None = None
    # Tokens a minute, of prompts and answers together.
    tokens_per_minute: int | None = None
    # Tokens a day.
    tokens_per_day: int | None = None
    # Requests under way at once.
    concurrent_requests: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{field.name} is {value!r}; it is a whole number from 1, or left out for no limit")

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) is not None for field in fields(self))


NO_LIMITS = Limits()


class Bucket:
    """`size` at once, and `size` more evenly over `seconds`."""

    def __init__(self, size: int, seconds: float, now: float) -> None:
        self.size, self._rate = size, size / seconds
        self._level, self._at = float(size), now

    def level(self, now: float) -> float:
        """What is there; below zero when more was taken than was there."""
        self._level = min(float(self.size), self._level + max(0.0, now - self._at) * self._rate)
        self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Take it, whether it is there or not."""
        self._level = self.level(now) - amount

    def seconds_until(self, amount: float, now: float) -> float:
        """Seconds until this much is there; 0.0: it is."""
        return max(0.0, (amount - self.level(now)) / self._rate)

    def seconds_until_full(self, now: float) -> float:
        """Seconds until nothing is missing."""
        return self.seconds_until(self.size, now)


@dataclass(frozen=True)
class _Rule:
    """One of a key's buckets: whose 429 says `kind` and `words`."""

    kind: str
    words: str
    bucket: Bucket


class _Use:
    """What one key has used."""

    def __init__(self, limits: Limits, now: float) -> None:
        self.running = 0
        self.set(limits, now)

    def set(self, limits: Limits, now: float) -> None:
        """Begin anew with these; what is running goes on to count."""
        self.limits = limits
        self.requests = _rule("requests", "requests per min (RPM)", limits.requests_per_minute, _MINUTE, now)
        self.tokens = [
            rule
            for rule in (
                _rule("tokens", "tokens per min (TPM)", limits.tokens_per_minute, _MINUTE, now),
                _rule("tokens", "tokens per day (TPD)", limits.tokens_per_day, _DAY, now),
            )
            if rule is not None
        ]


def _rule(kind: str, words: str, size: int | None, seconds: float, now: float) -> _Rule | None:
    return None if size is None else _Rule(kind, words, Bucket(size, seconds, now))


class Meter:
    """What the request under way may take. `meter()` is that of the task that asks; without limits it lets all pass."""

    def __init__(self, use: _Use | None = None, name: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._use, self._name, self._clock = use, name, clock

    def admit(self, tokens: int) -> None:
        """Pay for a prompt before it is computed. Raises APIError 429 where the key has not got as many left."""
        rules = self._use.tokens if self._use is not None else []
        for rule in rules:
            self._check(rule, tokens)
        self.spend(tokens)

    def spend(self, tokens: int) -> None:
        """Pay for tokens that have been made, even more than are left."""
        for rule in self._use.tokens if self._use is not None else []:
            rule.bucket.take(tokens, self._clock())

    def begin(self) -> None:
        """Count the request itself. Raises APIError 429 when it is one too many, or no tokens are left."""
        use = self._use
        if use is None:
            return
        most = use.limits.concurrent_requests
        if most is not None and use.running >= most:
            raise _too_many(self._name, "requests", "requests at once", most, use.running, 1, 1.0)
        for rule in use.tokens:
            self._check(rule, 1)
        if use.requests is not None:
            self._check(use.requests, 1)
            use.requests.bucket.take(1, self._clock())
        use.running += 1

    def end(self) -> None:
        """The request is over."""
        if self._use is not None:
            self._use.running -= 1

    def headers(self) -> dict[str, str]:
        """`x-ratelimit-limit-requests` and the like, for what has a limit."""
        found: dict[str, str] = {}
        if self._use is None:
            return found
        now = self._clock()
        tightest = min(self._use.tokens, key=lambda rule: rule.bucket.level(now), default=None)
        for rule in (self._use.requests, tightest):
            if rule is not None:
                found[f"x-ratelimit-limit-{rule.kind}"] = str(rule.bucket.size)
                found[f"x-ratelimit-remaining-{rule.kind}"] = str(max(0, math.floor(rule.bucket.level(now))))
                found[f"x-ratelimit-reset-{rule.kind}"] = duration(rule.bucket.seconds_until_full(now))
        return found

    def _check(self, rule: _Rule, amount: int) -> None:
        now = self._clock()
        seconds, size = rule.bucket.seconds_until(amount, now), rule.bucket.size
        if seconds > 0:
            used = math.ceil(size - rule.bucket.level(now))
            raise _too_many(self._name, rule.kind, rule.words, size, used, amount, seconds)


def _too_many(name: str, kind: str, words: str, limit: int, used: int, asked: int, seconds: float) -> APIError:
    text = f"Rate limit reached for {name} on {words}: Limit {limit}, Used {used}, Requested {asked}."
    if asked > limit:
        advice = f"Request too large for {name} on {words}: Limit {limit}, Requested {asked}. Make the prompt shorter."
        return APIError(429, advice, type=kind, code="rate_limit_exceeded")
    message = f"{text} Please try again in {duration(seconds)}."
    return APIError(429, message, type=kind, code="rate_limit_exceeded", retry_after=math.ceil(seconds))


def duration(seconds: float) -> str:
    """As OpenAI's headers have it: "120ms", "1.5s", "6m0s", "1h0m2s"; rounded up."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    hours, rest = divmod(math.ceil(seconds * 10) / 10, 3600)
    minutes, rest = divmod(rest, 60)
    parts = f"{hours:.0f}h{minutes:.0f}m" if hours else f"{minutes:.0f}m" if minutes else ""
    return f"{parts}{rest:.3g}s"


_FREE = Meter()
_METER: ContextVar[Meter] = ContextVar("chatloom_meter", default=_FREE)


def meter() -> Meter:
    """That of the request in whose task (or a task it began) this is called."""
    return _METER.get()


class RateLimits:
    """Middleware: counts what a principal with a key asks for, refuses what is too much, says how much is left.

    What costs something is a POST: reading lists and pages is free. `request.state.principal` is set by `guard.Guard`,
    which must be outside this.
    """

    def __init__(
        self, app: ASGIApp, *, default: Limits = NO_LIMITS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app, self._default, self._clock = app, default, clock
        self._uses: dict[str, _Use] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        principal = scope.get("state", {}).get("principal")
        key = None if principal is None else principal.key
        if scope["type"] != "http" or key is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        one = Meter(self._use(key.id, key.limits or self._default), key.name, self._clock)
        try:
            one.begin()
        except APIError as error:
            response = error.response()
            response.headers.update(one.headers())
            await response(scope, receive, send)
            return
        token = _METER.set(one)
        try:
            await self._app(scope, receive, _with_headers(send, one))
        finally:
            _METER.reset(token)
            one.end()

    def _use(self, key: str, limits: Limits) -> _Use:
        use = self._uses.get(key)
        if use is None:
            use = self._uses[key] = _Use(limits, self._clock())
        elif use.limits != limits:  # the operator has changed them
            use.set(limits, self._clock())
        return use


def _with_headers(send: Send, one: Meter) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            listed = [(name.encode(), value.encode()) for name, value in one.headers().items()]
            message = {**message, "headers": [*message.get("headers", []), *listed]}
        await send(message)

    return sending
