"""The page's routes: whose conversations they are, answers that outlive who asked, and what they refuse."""

import errno
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from chatloom.feedback.store import Store
from chatloom.server import markdown, running
from chatloom.server.accounts import ROLES
from chatloom.server.app import Settings
from chatloom.server.key_file import KeyFile
from chatloom.server.page import WEB
from chatloom.testing.paced import PacedEngine, paced
from chatloom.testing.serving import Running, serve

WRITE = {"X-CSRF-Token": "local"}
FINE = {"title": "fine", "messages": [{"id": "a", "role": "user", "content": "x"}]}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    model = paced(lambda prompt: "It is **so**.")
    with Store.open(tmp_path / "feedback.db") as store, serve({"echo": model}, store=store) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.base_url, headers=WRITE, timeout=20) as client:
        yield client


def engine_of(server: Running) -> PacedEngine:
    engine = server.models["echo"].model.engine
    assert isinstance(engine, PacedEngine)
    return engine


def asked(client: httpx.Client, text: str = "hi", **how: Any) -> tuple[str, list[dict[str, Any]]]:
    """A new conversation with one question; its id and the answers that began."""
    conversation = client.post("/api/conversations", json={}).json()["conversation"]["id"]
    said = client.post(f"/api/conversations/{conversation}/messages", json={"content": text}).json()["message"]["id"]
    return conversation, client.post(f"/api/messages/{said}/answers", json=how).json()["messages"]


def events(client: httpx.Client, id: str, **query: str) -> list[dict[str, Any]]:
    """All events of an answer, to its end."""
    text = client.get(f"/api/messages/{id}/events", params=query).text
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def test_an_answer_goes_on_when_nobody_looks(client: httpx.Client, server: Running) -> None:
    engine = engine_of(server)
    engine.hold()
    conversation, (message,) = asked(client)
    engine.say(5)
    with client.stream("GET", f"/api/messages/{message['id']}/events") as looking:
        assert looking.headers["content-type"].startswith("text/event-stream")
        first = next(line for line in looking.iter_lines() if line)
        assert json.loads(first[6:])["status"] == "running"
    engine.release()
    last = events(client, message["id"])[-1]["message"]
    assert (last["status"], last["content"], last["blocks"]) == (
        "done",
        "It is **so**.",
        ["<p>It is <strong>so</strong>.</p>\n"],
    )
    again = client.get(f"/api/conversations/{conversation}").json()["messages"][-1]
    assert {name: again[name] for name in ("content", "made", "figures")} == {
        name: last[name] for name in ("content", "made", "figures")
    }
    assert events(client, message["id"])[-1]["message"]["content"] == "It is **so**."  # of one that has ended, too


def test_one_stream_of_several_answers(client: httpx.Client, server: Running) -> None:
    _, messages = asked(client, n=3, sampling={"temperature": 1.0, "seed": 5})
    ids = [message["id"] for message in messages]
    told = events(client, ids[0], also=",".join(ids[1:]))
    assert {event["id"] for event in told if "message" in event} == set(ids)
    store: Store = server.app.state.store
    seeds = [message.made.seed for message in map(store.message, ids) if message.made]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3


def test_a_stopped_server_keeps_what_there_was(tmp_path: Path) -> None:
    with Store.open(tmp_path / "feedback.db") as store:
        with serve({"echo": paced(lambda prompt: "It is so.")}, store=store) as running:
            engine_of(running).hold()
            with httpx.Client(base_url=running.base_url, headers=WRITE) as client:
                _, (message,) = asked(client)
            engine_of(running).say(5)
        kept = store.message(message["id"])
        assert (kept.status, kept.content) == ("stopped", "It is")
        assert kept.made is not None
        assert len(kept.made.tokens) == 5


def test_a_continued_answer_keeps_all_its_tokens(client: httpx.Client, server: Running) -> None:
    _, (message,) = asked(client, sampling={"max_tokens": 4})
    assert events(client, message["id"])[-1]["message"]["content"] == "It i"
    store: Store = server.app.state.store
    before = store.message(message["id"]).made
    assert before is not None
    response = client.post(f"/api/messages/{message['id']}/continue", json={"sampling": {"max_tokens": 6}})
    assert response.json()["message"]["status"] == "running"
    last = events(client, message["id"])[-1]["message"]
    made = store.message(message["id"]).made
    assert made is not None
    assert last["content"] == "It iIt is " == server.models["echo"].tokenizer.decode(made.tokens)
    assert (made.prompt_tokens, made.tokens[:4]) == (before.prompt_tokens, before.tokens)
    assert before.sampling.items() <= made.sampling.items()
    assert made.sampling["max_tokens_from_4"] == 6
    assert isinstance(made.sampling["seed_from_4"], int)
    assert made.seed == before.seed
    assert engine_of(server).prompts[-1].endswith("<|assistant|>It i")


def test_what_belongs_to_another_is_not_there(client: httpx.Client, server: Running) -> None:
    store: Store = server.app.state.store
    theirs = store.create_conversation(owner="ann", title="secret")
    question = store.add_message(theirs.id, parent=None, role="user", content="secret")
    answer = store.add_message(theirs.id, parent=question.id, role="assistant", content="secret")
    for method, path, body in [
        ("GET", f"/api/conversations/{theirs.id}", None),
        ("PATCH", f"/api/conversations/{theirs.id}", {"title": "mine"}),
        ("DELETE", f"/api/conversations/{theirs.id}", None),
        ("POST", f"/api/conversations/{theirs.id}/messages", {"content": "x"}),
        ("POST", f"/api/messages/{question.id}/answers", {}),
        ("GET", f"/api/messages/{answer.id}/events", None),
        ("POST", f"/api/messages/{answer.id}/stop", {}),
        ("POST", f"/api/messages/{answer.id}/continue", {}),
        ("POST", f"/api/messages/{answer.id}/rating", {"value": 1}),
        ("POST", f"/api/messages/{answer.id}/edit", {"text": "x"}),
        ("POST", "/api/comparisons", {"chosen": answer.id, "rejected": answer.id}),
        ("POST", "/api/rankings", {"groups": [[answer.id]]}),
        ("GET", f"/api/export?conversation={theirs.id}", None),
    ]:
        response = client.request(method, path, json=body)
        assert response.status_code == 404, (path, response.text)
        assert "secret" not in response.text
    assert client.get("/api/conversations").json()["conversations"] == []
    assert client.get("/api/export").json()["conversations"] == []
    assert store.conversation(theirs.id, owner="ann").title == "secret"
    _, (own,) = asked(client)
    assert client.get(f"/api/messages/{own['id']}/events?also={answer.id}").status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/api/conversations/{c}/messages", {"content": "  "}, "empty"),
        ("/api/conversations/{c}/messages", {"content": "x", "parent": "nobody"}, "no message"),
        ("/api/conversations/{c}/messages", {"content": "x", "parent": "{q}"}, "after one of the assistant"),
        ("/api/conversations/{c}/messages", {"content": "x" * 1_000_001}, "content"),
        ("/api/messages/{q}/answers", {"model": "nobody"}, "does not exist"),
        ("/api/messages/{q}/answers", {"n": 2, "sampling": {"temperature": 0, "top_p": 7}}, "top_p"),
        ("/api/messages/{q}/answers", {"n": 99}, "n"),
        ("/api/messages/{q}/answers", {"colour": 1}, "Unknown parameter"),
        ("/api/messages/{a}/answers", {}, "Only a message of the user"),
        ("/api/messages/{a}/continue", {}, "come to its end"),
        ("/api/messages/{a}/rating", {"value": 2}, "value"),
        ("/api/messages/{q}/rating", {"value": 1}, "only answers"),
        ("/api/rankings", {"groups": []}, "groups"),
        ("/api/rankings", {"groups": [["{a}"]]}, "at least two"),
        ("/api/comparisons", {"chosen": "{a}", "rejected": "{a}"}, "at least two"),
        ("/api/import", {"conversations": [{"x": 1}]}, "conversation 1 of the file"),
        ("/api/import", {"conversations": [FINE, FINE | {"title": "\ud800"}]}, "conversation 2 of the file"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_stored(
    client: httpx.Client, path: str, body: dict[str, Any], words: str
) -> None:
    conversation, (message,) = asked(client)
    events(client, message["id"])
    names = {"c": conversation, "q": message["parent"], "a": message["id"]}
    before = client.get("/api/export").json()
    text = re.sub(r"\{([cqa])\}", lambda match: names[match.group(1)], json.dumps(body))
    response = client.post(path.format(**names), content=text, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 404), response.text
    assert words in response.json()["error"]["message"]
    assert client.get("/api/export").json() == before
    assert client.get("/api/loop").json()["total"] == 0


def test_an_answer_under_way_cannot_be_judged_and_is_ended_with_its_conversation(
    client: httpx.Client, server: Running
) -> None:
    engine_of(server).hold()
    conversation, (message,) = asked(client)
    response = client.post(f"/api/messages/{message['id']}/rating", json={"value": 1})
    assert "still being written" in response.json()["error"]["message"]
    assert client.delete(f"/api/conversations/{conversation}").status_code == 204
    assert server.models.num_live == 0


def test_of_many_who_continue_an_answer_one_does(client: httpx.Client, server: Running) -> None:
    _, (message,) = asked(client, sampling={"max_tokens": 2})
    events(client, message["id"])
    engine_of(server).hold()
    with ThreadPoolExecutor(6) as together:
        asking = [
            together.submit(client.post, f"/api/messages/{message['id']}/continue", json={"sampling": {}})
            for _ in range(6)
        ]
        assert sorted(one.result().status_code for one in asking) == [200, 400, 400, 400, 400, 400]
    assert server.models.num_live == 1
    client.post(f"/api/messages/{message['id']}/stop").raise_for_status()
    assert server.models.num_live == 0


def test_an_answer_that_was_judged_or_answered_stays_what_it_is(client: httpx.Client, server: Running) -> None:
    conversation, (judged, gone_on) = asked(client, n=2, sampling={"max_tokens": 2})
    events(client, judged["id"], also=gone_on["id"])
    client.post(f"/api/messages/{judged['id']}/rating", json={"value": -1}).raise_for_status()
    more = {"content": "and?", "parent": gone_on["id"]}
    client.post(f"/api/conversations/{conversation}/messages", json=more).raise_for_status()
    for message, words in ((judged, "judged as it is"), (gone_on, "gone on behind")):
        refused = client.post(f"/api/messages/{message['id']}/continue", json={"sampling": {}})
        assert refused.status_code == 400
        assert words in refused.json()["error"]["message"]
    client.post(f"/api/messages/{judged['id']}/rating", json={"value": 0}).raise_for_status()
    client.post(f"/api/messages/{judged['id']}/continue", json={"sampling": {}}).raise_for_status()


def test_an_answer_that_cannot_be_stored_is_not_computed_on(
    client: httpx.Client, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, "the disk of /secret/place is full")

    engine = engine_of(server)
    engine.hold()
    monkeypatch.setattr(running, "STORE_SECONDS", 0.0)
    _, (message,) = asked(client)
    monkeypatch.setattr(server.app.state.store, "update_message", full)
    engine.say(3)
    answers = server.app.state.page.answers
    deadline = time.monotonic() + 10
    while server.models.num_live or answers.get(message["id"]) is not None:
        assert time.monotonic() < deadline, "it is computed for nobody"
        time.sleep(0.01)
    assert "/secret" not in answers.problems[message["id"]]


def test_an_answer_that_failed_cannot_be_judged(client: httpx.Client, server: Running) -> None:
    _, messages = asked(client, n=2)
    good, failed = (message["id"] for message in messages)
    events(client, good, also=failed)
    server.app.state.store.update_message(failed, status="failed")
    for path, body in [
        ("/api/rankings", {"groups": [[good], [failed]]}),
        ("/api/comparisons", {"chosen": good, "rejected": failed}),
        (f"/api/messages/{failed}/rating", {"value": -1}),
        (f"/api/messages/{failed}/edit", {"text": "x"}),
    ]:
        response = client.post(path, json=body)
        assert response.status_code == 400, path
        assert "failed" in response.json()["error"]["message"]
    assert client.get("/api/loop").json()["total"] == 0


@pytest.mark.parametrize("role", ["admin", "labeler", "user"])
def test_where_the_database_is_only_its_administrators_are_told(tmp_path: Path, role: str) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"sk-a-key-of-the-file-{role} name=one role={role}\n")
    settings = Settings(key_file=KeyFile(keys, ROLES))
    path = tmp_path / "feedback.db"
    with (
        Store.open(path) as store,
        serve({"echo": paced(lambda prompt: "no")}, store=store, settings=settings) as running,
    ):
        headers = {"Authorization": f"Bearer sk-a-key-of-the-file-{role}"}
        response = httpx.get(f"{running.base_url}/api/loop", headers=headers)
    assert response.status_code == 200, response.text
    assert (str(path) in response.text) == (role == "admin")
    assert "--to reward" in response.json()["commands"][0]


@pytest.mark.parametrize("removed", ["conversation", "user"])
def test_what_is_deleted_is_not_remembered_as_it_was_shown(client: httpx.Client, server: Running, removed: str) -> None:
    markdown.render("```python\nsecret = 1\n```")
    assert markdown._clean.cache_info().currsize
    assert markdown._coloured.cache_info().currsize
    if removed == "conversation":
        conversation = client.post("/api/conversations", json={}).json()["conversation"]["id"]
        client.delete(f"/api/conversations/{conversation}").raise_for_status()
    else:
        server.app.state.accounts.add_user("ann", password=None)
        server.app.state.accounts.remove_user("ann")
    assert not markdown._clean.cache_info().currsize
    assert not markdown._coloured.cache_info().currsize


def test_a_rating_of_two_who_agree_shows_in_the_loop(client: httpx.Client, server: Running) -> None:
    store: Store = server.app.state.store
    _, (message,) = asked(client)
    events(client, message["id"])
    client.post(f"/api/messages/{message['id']}/rating", json={"value": 1, "tags": ["clear"]})
    store.rate(message["id"], rater="ann", value=1)
    loop = client.get("/api/loop").json()
    assert (loop["total"], loop["raters"], loop["agreement"], loop["thumbs"]) == (2, 2, 1.0, {"up": 2, "down": 0})
    assert loop["models"] == [{"name": "echo", "rating": 2}]


def test_the_files_have_no_script_or_style_within_and_nothing_from_elsewhere() -> None:
    index = (WEB / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|<script(?![^>]* src=\"/web/)|\son[a-z]+=|\sstyle=|https?://", index)
    for path in [*WEB.glob("js/*.js"), *WEB.glob("css/*.css")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|\beval\(|new Function", text), path
        for module in re.findall(r'from "(/web/[^"]+)"', text):
            assert (WEB.parent / module.removeprefix("/")).is_file(), f"{path} imports {module}"
    for path in re.findall(r'(?:src|href)="(/web/[^"]+)"', index):
        assert (WEB.parent / path.removeprefix("/")).is_file(), path


def test_both_languages_have_the_same_texts_and_every_text_is_there() -> None:
    def texts(name: str) -> dict[str, str]:
        source = (WEB / "js" / name).read_text(encoding="utf-8")
        return dict(re.findall(r'^  (\w+): "((?:[^"\\]|\\.)*)",$', source, re.MULTILINE))

    english, chinese = texts("texts_en.js"), texts("texts_zh.js")
    assert english.keys() == chinese.keys()
    assert len(english) > 150
    for key, text in english.items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", chinese[key])), key
    assert "unless the operator" in english["consentHint"]  # `feedback export --with-unconsented`
    scripts = "".join(path.read_text(encoding="utf-8") for path in (WEB / "js").glob("*.js"))
    for key in re.findall(r'\bt\("(\w+)"', scripts):
        assert key in english, key


def test_what_one_server_writes_another_on_its_database_shows(
    client: httpx.Client, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "STORE_SECONDS", 0.0)
    engine = engine_of(server)
    engine.hold()
    conversation, (message,) = asked(client)
    engine.say(5)
    store: Store = server.app.state.store
    with (
        serve({"echo": paced(lambda prompt: "no")}, store=store) as other,
        httpx.Client(base_url=other.base_url, headers=WRITE, timeout=20) as elsewhere,
    ):
        with elsewhere.stream("GET", f"/api/messages/{message['id']}/events") as looking:
            told = (json.loads(line[6:]) for line in looking.iter_lines() if line)
            assert next(event for event in told if event["blocks"])["blocks"] == ["<p>It is</p>\n"]
            engine.release()
            assert list(told)[-1]["message"]["content"] == "It is **so**."
        assert elsewhere.get(f"/api/conversations/{conversation}").json()["messages"][-1]["status"] == "done"


def test_an_answer_whose_server_is_gone_is_stopped_and_can_go_on(
    client: httpx.Client, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "ABANDONED_SECONDS", -1.0)
    _, (message,) = asked(client)
    events(client, message["id"])
    store: Store = server.app.state.store
    made = store.message(message["id"]).made
    assert made is not None
    cut = replace(made, tokens=made.tokens[:5], finish_reason=None)
    store.update_message(message["id"], content="It is", status="running", made=cut)
    last = events(client, message["id"])[-1]["message"]
    assert (last["status"], last["content"], last["can_continue"]) == ("stopped", "It is", True)


def test_an_import_is_bounded_by_what_the_page_sends(server: Running) -> None:
    host, port = server.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST /api/import HTTP/1.1\r\nHost: {host}:{port}\r\nX-CSRF-Token: local\r\n"
        connection.sendall(f"{head}Content-Length: {32 * 2**20 + 1}\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")
