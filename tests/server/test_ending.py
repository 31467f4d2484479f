"""A server that is told to end: running answers finish, new ones hear 503, and what takes too long is cut off."""

import json
import threading
import time
from pathlib import Path

import httpx
import pytest

from chatloom.feedback.store import Store
from chatloom.server.app import create_app
from chatloom.server.ending import Server
from chatloom.server.guard import SECURITY_HEADERS
from chatloom.server.served import ServedModels
from chatloom.testing.serving import listening_socket, scripted, tiny

BODY = {"model": "slow", "messages": [{"role": "user", "content": "hi"}], "stream": True}


class Ran:
    """A server in a thread, of a model that says 60 characters in 0.6 seconds."""

    def __init__(self, store: Store, *, drain_seconds: float) -> None:
        self.models = ServedModels({"slow": scripted(lambda prompt: "x" * 60, pause=0.01)})
        self.server = Server(create_app(self.models, store), drain_seconds=drain_seconds)
        listening = listening_socket()
        self.base_url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def ended(self) -> bool:
        self.thread.join(10)
        return not self.thread.is_alive()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "feedback.db")


def events(lines: list[str]) -> list[dict[str, object]]:
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def test_running_answers_finish_and_new_ones_are_refused(store: Store) -> None:
    ran = Ran(store, drain_seconds=20)
    with httpx.stream("POST", f"{ran.base_url}/v1/chat/completions", json=BODY) as answer:
        lines = answer.iter_lines()
        first = [next(lines) for _ in range(6)]
        ran.server.end()
        refused = httpx.post(f"{ran.base_url}/v1/chat/completions", json=BODY)
        health = httpx.get(f"{ran.base_url}/health")
        rest = list(lines)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "shutting_down"
    assert refused.headers["Retry-After"] == "5"
    assert SECURITY_HEADERS.items() <= dict(refused.headers).items()
    assert (health.status_code, health.json()) == (503, {"status": "ending"})
    assert "data: [DONE]" in rest
    text = "".join(
        each["choices"][0]["delta"].get("content", "")  # type: ignore[index]
        for each in events(first + rest)
    )
    assert text == "x" * 60
    assert ran.ended()
    assert len(store.requests()) == 1  # the refused one came to no route


def test_what_takes_too_long_is_cut_off_and_told(store: Store) -> None:
    ran = Ran(store, drain_seconds=0.1)
    with httpx.stream("POST", f"{ran.base_url}/v1/chat/completions", json=BODY) as answer:
        lines = answer.iter_lines()
        next(lines)
        ran.server.end()
        rest = events(list(lines))
    assert rest[-1]["error"]["code"] == "overloaded"  # type: ignore[index]
    assert ran.ended()
    assert ran.models.num_live == 0


def test_asked_twice_it_ends_at_once(store: Store) -> None:
    ran = Ran(store, drain_seconds=60)
    begun = time.monotonic()
    with httpx.stream("POST", f"{ran.base_url}/v1/chat/completions", json=BODY) as answer:
        lines = answer.iter_lines()
        next(lines)
        ran.server.handle_exit(15, None)
        ran.server.handle_exit(15, None)
        assert ran.ended()
    assert time.monotonic() - begun < 30


def test_an_engine_that_served_can_serve_again(store: Store) -> None:
    model = tiny()
    for _ in range(2):
        models = ServedModels({"tiny": model})
        server = Server(create_app(models, store))
        listening = listening_socket()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1/completions"
        thread.start()
        answer = httpx.post(url, json={"model": "tiny", "prompt": "a", "max_tokens": 2}, timeout=20)
        assert answer.status_code == 200
        server.end()
        thread.join(10)
        assert not thread.is_alive()
