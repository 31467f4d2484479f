"""Passwords at rest, and how often somebody may be wrong."""

import asyncio

import pytest

from chatloom.server import passwords
from chatloom.server.passwords import LoginThrottle, Throttle


def test_only_the_password_matches_its_hash_and_the_hash_does_not_hold_it() -> None:
    stored = passwords.hashed("correct horse")
    assert passwords.matches("correct horse", stored)
    assert not passwords.matches("correct horsf", stored)
    assert "correct" not in stored
    assert passwords.hashed("correct horse") != stored  # a salt of its own


def test_nobody_has_no_password() -> None:
    assert not passwords.matches("", None)
    assert not passwords.matches("anything", None)


def test_the_cost_is_that_of_the_hash() -> None:
    """A hash of an older, lower cost goes on to match."""
    salt, digest = b"salt" * 4, passwords._scrypt("correct horse", b"salt" * 4, 2**10, 8, 1)
    stored = "$".join(("scrypt", "1024", "8", "1", passwords._text(salt), passwords._text(digest)))
    assert passwords.matches("correct horse", stored)


def test_known_vector() -> None:
    """RFC 7914, section 12, the second vector's first 32 bytes."""
    assert passwords._scrypt("password", b"NaCl", 1024, 8, 16).hex() == (
        "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b373162"
    )


@pytest.mark.parametrize("password", ["short12", "x" * 1025])
def test_lengths(password: str) -> None:
    with pytest.raises(ValueError, match=r"8 to 1024 characters"):
        passwords.hashed(password)


def test_a_throttle_lets_a_burst_through_then_one_at_a_time() -> None:
    now = 100.0
    throttle = Throttle(3, 10.0, clock=lambda: now)
    for _ in range(3):
        assert throttle.wait("ana") == 0
        throttle.count("ana")
    assert throttle.wait("ana") == pytest.approx(10)
    assert throttle.wait("ben") == 0
    now += 10
    assert throttle.wait("ana") == 0
    throttle.count("ana")
    assert throttle.wait("ana") == pytest.approx(10)
    throttle.forget("ana")
    assert throttle.wait("ana") == 0


def test_a_throttle_remembers_so_many() -> None:
    throttle = Throttle(1, 10.0, remembered=2, clock=lambda: 0.0)
    for caller in ("a", "b", "c"):
        throttle.count(caller)
    assert len(throttle._free_at) == 2
    assert throttle.wait("c") > 0


def test_a_stranger_does_not_lock_a_person_out_soon() -> None:
    throttle = LoginThrottle(clock=lambda: 0.0)
    for _ in range(5):
        throttle.tried("ana", "10.0.0.1")
    assert throttle.wait("ana", "10.0.0.1") > 0
    assert throttle.wait("ana", "10.0.0.2") == 0


def test_many_names_from_one_address_and_one_name_from_many_addresses_are_slowed() -> None:
    throttle = LoginThrottle(clock=lambda: 0.0)
    for number in range(20):
        throttle.tried(f"name{number}", "10.0.0.1")
    assert throttle.wait("ben", "10.0.0.1") > 0
    for number in range(100):
        throttle.tried("ana", f"10.0.1.{number}")
    assert throttle.wait("ana", "10.0.2.1") > 0


def test_a_crowd_waits_its_turn_and_the_rest_is_sent_away() -> None:
    async def run() -> None:
        throttle, gate, inside = LoginThrottle(), asyncio.Event(), 0

        async def one() -> None:
            nonlocal inside
            async with throttle.turn():
                inside += 1
                await gate.wait()

        tasks = [asyncio.create_task(one()) for _ in range(31)]
        await asyncio.sleep(0)
        assert not throttle.crowded
        tasks.append(asyncio.create_task(one()))
        for _ in range(5):
            await asyncio.sleep(0)
        assert throttle.crowded
        assert inside == 2
        gate.set()
        await asyncio.gather(*tasks)
        assert not throttle.crowded
        assert inside == 32

    asyncio.run(run())
