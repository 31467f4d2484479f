"""What is seen from outside: health, figures, log lines and past requests; and that none of it holds text."""

import io
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

from chatloom.feedback.store import Store
from chatloom.server import observe
from chatloom.server.guard import SECURITY_HEADERS, Guard
from chatloom.testing.serving import Running, scripted, tiny

SECRET = [{"role": "user", "content": "my secret words"}]


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, object]]]]:
    """The log's lines, parsed."""
    loggers = [logging.getLogger(name) for name in ("chatloom.server", "uvicorn")]
    before = [(each, each.handlers, each.propagate, each.level) for each in loggers]
    stream = io.StringIO()
    observe.log_to(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    for each, handlers, propagate, level in before:
        each.handlers, each.propagate = handlers, propagate
        each.setLevel(level)


def figures(server: Running) -> dict[str, float]:
    text = httpx.get(f"{server.base_url}/metrics").text
    return {name: float(value) for name, value in re.findall(r"^([^#\s]\S*) (\S+)$", text, re.MULTILINE)}


def test_health(tiny_server: Running) -> None:
    answer = httpx.get(f"{tiny_server.base_url}/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_figures_count_what_was_asked(serving: Callable[..., Running]) -> None:
    server = serving(tiny=tiny())
    for stream in (False, True):
        list(
            server.client.chat.completions.create(  # type: ignore[call-overload]
                model="tiny", messages=SECRET, max_tokens=5, stream=stream, logit_bias={"6": -100, "1": -100}
            )
        )
    with pytest.raises(openai.NotFoundError):
        server.client.chat.completions.create(model="no", messages=SECRET)  # type: ignore[arg-type]
    found = figures(server)
    assert found['chatloom_requests_total{path="/v1/chat/completions",status="200"}'] == 2
    assert found['chatloom_requests_total{path="/v1/chat/completions",status="404"}'] == 1
    assert found['chatloom_answers_total{finish_reason="length",model="tiny"}'] == 2
    assert found['chatloom_generated_tokens_total{model="tiny"}'] == 10
    assert found['chatloom_first_token_seconds_count{model="tiny"}'] == 2
    assert found['chatloom_answer_tokens_per_second_count{model="tiny"}'] == 2
    assert found['chatloom_prompt_tokens_total{model="tiny"}'] > 10
    assert found['chatloom_cached_tokens_total{model="tiny"}'] > 0  # the second time
    assert found["chatloom_requests_in_flight"] == 1  # this one
    assert found['chatloom_kv_blocks{model="tiny"}'] > found['chatloom_kv_blocks_in_use{model="tiny"}'] == 0


def test_running_answers_are_seen_while_they_run(serving: Callable[..., Running]) -> None:
    server = serving(slow=scripted(lambda prompt: "x" * 500, pause=0.01))
    body = {"model": "slow", "messages": SECRET, "stream": True}
    with httpx.stream("POST", f"{server.base_url}/v1/chat/completions", json=body) as answer:
        own = answer.iter_lines()
        next(own)
        assert figures(server)['chatloom_running{model="slow"}'] == 1


def test_a_log_line_names_the_request_and_never_its_text(
    serving: Callable[..., Running], lines: Callable[[], list[dict[str, object]]]
) -> None:
    server = serving(say=scripted(lambda prompt: "hidden answer"))
    made = server.client.chat.completions.create(model="say", messages=SECRET)  # type: ignore[arg-type]
    httpx.get(f"{server.base_url}/v1/secret-path?key=sk-secret", headers={"Authorization": "Bearer sk-secret"})
    deadline = time.monotonic() + 5
    while len(found := [line for line in lines() if line["event"] == "request"]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    asked, unknown = found
    assert asked["id"] == made._request_id
    assert (asked["method"], asked["path"], asked["status"]) == ("POST", "/v1/chat/completions", 200)
    assert (asked["model"], asked["num_tokens"], asked["finish_reason"]) == ("say", 14, "stop")
    assert (unknown["path"], unknown["status"], unknown["error"]) == ("(unknown)", 404, "unknown_url")
    assert not re.search("secret|hidden", json.dumps(lines()))


def test_an_exception_is_logged_without_its_words() -> None:
    def fails() -> None:
        raise ValueError("somebody's text")

    with pytest.raises(ValueError, match="somebody") as caught:
        fails()
    failed = (caught.type, caught.value, caught.tb)
    record = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "it failed", (), failed)
    line = json.loads(observe.JSONLines().format(record))
    assert line["trace"][-1].endswith("fails")
    assert (line["event"], line["error"], line["logger"]) == ("it failed", "ValueError", "uvicorn.error")
    assert "somebody" not in json.dumps(line)


def test_what_nobody_foresaw_outside_the_guard_leaves_with_its_headers(
    serving: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> None:
        raise RuntimeError("somebody's text")

    server = serving(tiny=tiny())
    monkeypatch.setattr(Guard, "__call__", fails)
    answer = httpx.get(f"{server.base_url}/v1/models")
    assert answer.status_code == 500
    assert SECURITY_HEADERS.items() <= dict(answer.headers).items()
    assert "somebody" not in answer.text


def test_past_requests_are_kept_and_shown_without_text(serving: Callable[..., Running], tmp_path: Path) -> None:
    store = Store.open(tmp_path / "feedback.db")
    server = serving({"tiny": tiny()}, store=store)
    server.client.chat.completions.create(model="tiny", messages=SECRET, max_tokens=3, n=2, seed=1)  # type: ignore[arg-type]
    list(server.client.completions.create(model="tiny", prompt="my secret", max_tokens=3, stream=True))
    with pytest.raises(openai.BadRequestError):
        server.client.completions.create(model="tiny", prompt=[])
    answer = httpx.get(f"{server.base_url}/api/requests")
    refused, streamed, chat = answer.json()["data"]
    assert chat["path"] == "/v1/chat/completions"
    assert (chat["status"], chat["model"], chat["stream"], chat["caller"]) == (200, "tiny", False, "")
    assert chat["num_tokens"] == 6
    assert chat["first_token_seconds"] <= chat["seconds"]
    assert (streamed["stream"], streamed["finish_reason"]) == (True, "length")
    assert (refused["status"], refused["error"]) == (400, "empty_array")
    assert "secret" not in answer.text
    failed = httpx.get(f"{server.base_url}/api/requests", params={"failed": True}).json()["data"]
    assert [each["id"] for each in failed] == [refused["id"]]
    assert [each.id for each in store.requests(limit=1)] == [refused["id"]]
    wrong = httpx.get(f"{server.base_url}/api/requests", params={"limit": 0})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "limit")


def test_a_full_disk_takes_no_answers_with_it(serving: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    server = serving(tiny=tiny())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(server.app.state.store, "log_requests", full)
    for _ in range(2):
        server.client.completions.create(model="tiny", prompt="a", max_tokens=1)
        assert httpx.get(f"{server.base_url}/api/requests").json() == {"data": []}
