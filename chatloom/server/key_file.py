"""API keys in a file that the operator writes: `chatloom serve --api-key-file F`.

One key a line; empty lines and lines that begin with `#` are left out. Options follow the key, or the line is JSON:

    sk-9f2c...                                     # 8 characters or more, without spaces
    sk-71ab... name=evaluation requests_per_minute=60 tokens_per_day=1000000
    sha256:5e884898da28... name=ci role=admin     # the SHA-256 of a key, in hex: the key itself is nowhere
    {"key": "sk-55d0...", "name": "backup", "tokens_per_minute": 20000, "concurrent_requests": 4}

The file is read again when it has changed: a line that is deleted ends its key with the next request. A file that
others may write is refused, since they could add a key; one with keys in clear that others may read is warned of.
"""

import hashlib
import hmac
import json
import logging
import stat
import threading
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from chatloom.server.limits import Limits

SHORTEST = 8
_ADVISED = 20
_LIMITS = tuple(field.name for field in fields(Limits))
_OPTIONS = ("name", "role", *_LIMITS)
_log = logging.getLogger("chatloom.server")


@dataclass(frozen=True)
class FileKey:
    """One line: the digest of a key, whose it is, what it may."""

    digest: bytes
    name: str
    role: str
    limits: Limits
    clear: bool  # whether the file has the key itself
    short: bool

    @property
    def id(self) -> str:
        """Twelve hex digits of the digest, which tell it from others."""
        return f"file-{self.digest.hex()[:12]}"


class KeyFile:
    """The keys of a file, as it is now. ValueError at the start for a line that is wrong, naming it."""

    def __init__(self, path: Path, roles: tuple[str, ...]) -> None:
        self.path, self._roles = path, roles
        self._lock = threading.Lock()
        self._seen = self._state()
        self._keys = self._read()

    def keys(self) -> tuple[FileKey, ...]:
        """All of them. A file that has become unreadable leaves them as they were, and the log says so."""
        with self._lock:
            state = self._state()
            if state != self._seen:
                self._seen = state
                try:
                    self._keys = self._read()
                except (ValueError, OSError) as error:
                    _log.error("%s; the keys stay as they were", error)
            return self._keys

    def find(self, secret: str) -> FileKey | None:
        """The line of this key; it takes as long for one that is not there."""
        digest = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
        return self._having(digest)

    def with_id(self, id: str) -> FileKey | None:
        """The line that has this id."""
        return next((key for key in self.keys() if key.id == id), None)

    def _having(self, digest: bytes) -> FileKey | None:
        found = None
        for key in self.keys():
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _state(self) -> tuple[int, int, int] | None:
        try:
            about = self.path.stat()
        except OSError:
            return None
        return about.st_mtime_ns, about.st_size, about.st_ino

    def _read(self) -> tuple[FileKey, ...]:
        try:
            mode = self.path.stat().st_mode
            lines = self.path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: this is not text in UTF-8; a key file has one API key a line") from None
        except OSError as error:
            raise ValueError(f"{self.path}: the API key file cannot be read: {error.strerror}") from error
        if mode & stat.S_IWOTH:
            raise ValueError(f"{self.path}: everybody may write this API key file, and so add keys; chmod 600 it")
        keys: dict[bytes, FileKey] = {}
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.lstrip().startswith("#"):
                try:
                    key = self._line(line.strip())
                except ValueError as error:
                    raise ValueError(f"{self.path}, line {number}: {error}") from None
                if key.digest in keys:
                    raise ValueError(f"{self.path}, line {number}: this key is there twice")
                keys[key.digest] = key
        if not keys:
            raise ValueError(f"{self.path}: there is no API key in it; write one a line")
        if mode & stat.S_IROTH and any(key.clear for key in keys.values()):
            _log.warning("%s: everybody on this machine may read these API keys; chmod 600 it", self.path)
        if any(key.short for key in keys.values()):
            _log.warning("%s: an API key is shorter than %d characters, and may be guessed", self.path, _ADVISED)
        return tuple(keys.values())

    def _line(self, line: str) -> FileKey:
        """One line's key. The sentences of its errors never hold the key."""
        key, options = _json(line) if line.startswith("{") else _words(line)
        for name in options:
            if name not in _OPTIONS:
                raise ValueError(f"one of this key's options is unknown; there are {', '.join(_OPTIONS)}")
        if (clear := not key.startswith("sha256:")) and len(key) < SHORTEST:
            raise ValueError(f"a key has {SHORTEST} characters or more; this one has {len(key)}")
        digest = hashlib.sha256(key.encode()).digest() if clear else _digest(key.removeprefix("sha256:"))
        role = options.get("role", "user")
        if role not in self._roles:
            raise ValueError(f"role is {role!r}; it is one of {', '.join(self._roles)}")
        limits = Limits(**{name: options[name] for name in _LIMITS if name in options})
        name = options.get("name", f"file-{digest.hex()[:12]}")
        if not isinstance(name, str) or not name or len(name) > 64:
            raise ValueError("name is a text of 1 to 64 characters")
        return FileKey(digest, name, role, limits, clear, clear and len(key) < _ADVISED)


def _words(line: str) -> tuple[str, dict[str, Any]]:
    """`KEY name=value ...`."""
    key, *rest = line.split()
    options: dict[str, Any] = {}
    for word in rest:
        if word.startswith("#"):
            break
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError("after the key come options such as name=value, and a key has no spaces")
        options[name] = int(value) if name in _LIMITS and value.isdecimal() else value
    return key, options


def _json(line: str) -> tuple[str, dict[str, Any]]:
    """`{"key": ..., "name": ...}`."""
    try:
        options = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON at character {error.pos + 1}") from None
    key = options.pop("key", None)
    if not isinstance(key, str) or not key or any(character.isspace() for character in key):
        raise ValueError('a JSON line has {"key": "..."}, a text without spaces')
    return key, options


def _digest(text: str) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise ValueError("after sha256: come 64 hexadecimal digits")
    return digest
