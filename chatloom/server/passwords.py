"""Passwords at rest, and how often somebody may be wrong.

scrypt (Percival 2009; RFC 7914) with 16 MiB and a salt for each; the cost is stored beside the hash, so it can be
raised later without a migration. Guessing online is slowed by a bucket for a name at an address, for an address, and
for a name at all addresses: the last is wide, because it is the one by which a stranger could lock a person out.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable

SHORTEST, LONGEST = 8, 1024  # characters
_COST, _BLOCK, _PARALLEL = 2**14, 8, 1
_AT_ONCE, _MOST_WAITING = 2, 32  # a crowd of logins takes neither all the memory nor every core, nor every thread


def hashed(password: str) -> str:
    """`scrypt$cost$block$parallel$salt$hash`. Raises ValueError for a password that is too short or too long."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise ValueError(f"a password has {SHORTEST} to {LONGEST} characters; this one has {len(password)}")
    salt = secrets.token_bytes(16)
    return _stored(salt, _scrypt(password, salt, _COST, _BLOCK, _PARALLEL))


def matches(password: str, stored: str | None) -> bool:
    """Whether this is the password. It takes as long where there is none to compare with (None)."""
    _, cost, block, parallel, salt, digest = (stored or _nobody()).split("$")
    given = _scrypt(password[:LONGEST], _bytes(salt), int(cost), int(block), int(parallel))
    return hmac.compare_digest(given, _bytes(digest)) and stored is not None


def _scrypt(password: str, salt: bytes, cost: int, block: int, parallel: int) -> bytes:
    return hashlib.scrypt(
        password.encode("utf-8", "surrogatepass"),
        salt=salt,
        n=cost,
        r=block,
        p=parallel,
        maxmem=256 * cost * block,
        dklen=32,
    )


def _nobody() -> str:
    """A hash of no password, of today's cost."""
    return _stored(bytes(16), bytes(32))


def _stored(salt: bytes, digest: bytes) -> str:
    return "$".join(("scrypt", str(_COST), str(_BLOCK), str(_PARALLEL), _text(salt), _text(digest)))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


class Throttle:
    """`burst` tries at once, then one every `seconds`; of the last `remembered` callers, in this process."""

    def __init__(
        self, burst: int, seconds: float, *, remembered: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst, self._seconds, self._remembered, self._clock = burst, seconds, remembered, clock
        self._free_at: OrderedDict[str, float] = OrderedDict()  # when the bucket of a caller will be full again
        self._lock = threading.Lock()

    def wait(self, caller: str) -> float:
        """Seconds until this caller may try; 0.0: now."""
        with self._lock:
            ahead = self._free_at.get(caller, 0.0) - self._clock()
        return max(0.0, ahead - (self._burst - 1) * self._seconds)

    def count(self, caller: str) -> None:
        """Count one try."""
        with self._lock:
            self._free_at[caller] = max(self._free_at.pop(caller, 0.0), self._clock()) + self._seconds
            while len(self._free_at) > self._remembered:
                self._free_at.popitem(last=False)

    def forget(self, caller: str) -> None:
        """Start afresh: the caller was right."""
        with self._lock:
            self._free_at.pop(caller, None)


class LoginThrottle:
    """Tries by name and address: `wait`, `tried`, the try itself within a `turn`, and `right` if it was."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._pair = Throttle(5, 30.0, clock=clock)
        self._address = Throttle(20, 5.0, clock=clock)
        self._name = Throttle(100, 5.0, clock=clock)
        self._free, self._waiting = asyncio.Semaphore(_AT_ONCE), 0

    @property
    def crowded(self) -> bool:
        """Whether so many wait for their turn that one more had better come back."""
        return self._waiting >= _MOST_WAITING

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncGenerator[None, None]:
        """Wait until a password may be looked at: two at a time are, in all."""
        self._waiting += 1
        try:
            async with self._free:
                yield
        finally:
            self._waiting -= 1

    def wait(self, name: str, address: str) -> float:
        """Seconds until this name may be tried from this address; 0.0: now."""
        return max(self._pair.wait(f"{address} {name}"), self._address.wait(address), self._name.wait(name))

    def tried(self, name: str, address: str) -> None:
        """Count a try, before its password is looked at: tries at the same moment count too."""
        for throttle, caller in ((self._pair, f"{address} {name}"), (self._address, address), (self._name, name)):
            throttle.count(caller)

    def right(self, name: str, address: str) -> None:
        """The password was right."""
        self._pair.forget(f"{address} {name}")
