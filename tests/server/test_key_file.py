"""The operator's file of API keys."""

import hashlib
import logging
from pathlib import Path

import pytest

from chatloom.server.accounts import ROLES
from chatloom.server.key_file import KeyFile
from chatloom.server.limits import Limits

LONG = "sk-0123456789abcdef0123456789abcdef"


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def read(path: Path, text: str) -> KeyFile:
    return KeyFile(written(path / "keys", text), ROLES)


def test_all_ways_to_write_a_line(tmp_path: Path) -> None:
    hashed = hashlib.sha256(b"the third key").hexdigest()
    keys = read(
        tmp_path,
        f"""# a comment
{LONG}

sk-second-key-of-this-file name=second requests_per_minute=60 tokens_per_day=1000 # a note
sha256:{hashed} name=third role=admin
{{"key": "sk-fourth-key-of-this-file", "tokens_per_minute": 5, "concurrent_requests": 2}}
""",
    )
    first, second, third, fourth = (
        keys.find(secret)
        for secret in (LONG, "sk-second-key-of-this-file", "the third key", "sk-fourth-key-of-this-file")
    )
    assert first is not None
    assert second is not None
    assert third is not None
    assert fourth is not None
    assert (first.role, first.limits) == ("user", Limits())
    assert first.name == first.id == f"file-{hashlib.sha256(LONG.encode()).hexdigest()[:12]}"
    assert (second.name, second.limits) == ("second", Limits(requests_per_minute=60, tokens_per_day=1000))
    assert (third.name, third.role, third.clear) == ("third", "admin", False)
    assert fourth.limits == Limits(tokens_per_minute=5, concurrent_requests=2)
    for wrong in ("", LONG[:-1], LONG + "x", f"sha256:{hashed}", hashed, "\udc80"):
        assert keys.find(wrong) is None


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("short12", "8 characters or more; this one has 7"),
        (f"{LONG} requests_per_second=3", "options is unknown; there are name, role, requests_per_minute"),
        (f"{LONG} requests_per_minute=0", "requests_per_minute is 0"),
        (f"{LONG} tokens_per_day=many", "tokens_per_day is 'many'"),
        (f"{LONG} role=owner", "role is 'owner'; it is one of admin, labeler, user"),
        (f"{LONG} another", "a key has no spaces"),
        ('{"key": "x y"}', "a text without spaces"),
        ('{"name": "x"}', "a text without spaces"),
        ('{"key": ', "not JSON"),
        (f'{{"key": "{LONG}", "name": 3}}', "name is a text"),
        ("sha256:abc", "64 hexadecimal digits"),
        ("", "there is no API key in it"),
        (f"{LONG}\n{LONG}", "line 2: this key is there twice"),
    ],
)
def test_wrong_lines(tmp_path: Path, line: str, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(tmp_path, line)
    assert sentence in str(caught.value)
    assert str(tmp_path / "keys") in str(caught.value)
    assert LONG not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        KeyFile(tmp_path / "none", ROLES)
    (tmp_path / "keys").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        KeyFile(tmp_path / "keys", ROLES)


def test_who_may_read_and_write_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    KeyFile(written(tmp_path / "private", LONG), ROLES)
    digest = hashlib.sha256(LONG.encode()).hexdigest()
    KeyFile(written(tmp_path / "hashed", f"sha256:{digest}", 0o644), ROLES)
    assert not caplog.records
    KeyFile(written(tmp_path / "open", LONG, 0o644), ROLES)
    assert "everybody on this machine may read these API keys; chmod 600 it" in caplog.text
    with pytest.raises(ValueError, match="everybody may write this API key file"):
        KeyFile(written(tmp_path / "worse", LONG, 0o602), ROLES)
    assert LONG not in caplog.text


def test_a_short_key_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(tmp_path, "sk-short")
    assert "shorter than 20 characters" in caplog.text
    assert "sk-short" not in caplog.text


def test_a_changed_file_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = read(tmp_path, f"{LONG}\nsk-another-key-of-this-file")
    written(tmp_path / "keys", "sk-another-key-of-this-file")
    assert keys.find(LONG) is None
    assert keys.find("sk-another-key-of-this-file") is not None
    with caplog.at_level(logging.ERROR):
        written(tmp_path / "keys", "sk-another-key-of-this-file role=owner and so on")
        assert keys.find("sk-another-key-of-this-file") is not None
        assert "the keys stay as they were" in caplog.text
    (tmp_path / "keys").unlink()
    assert keys.find("sk-another-key-of-this-file") is not None
    written(tmp_path / "keys", LONG)
    assert keys.find(LONG) is not None
