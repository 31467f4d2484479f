"""Signing in and out as the page does it, accounts as an administrator has them, and no secret in any log or file."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from chatloom.feedback.store import Store
from chatloom.server import errors, passwords, sign_in
from chatloom.server.accounts import ROLES, Accounts
from chatloom.server.app import Settings, create_app
from chatloom.server.bodies import BodyLimits
from chatloom.server.guard import Door, Guard
from chatloom.server.key_file import KeyFile
from chatloom.server.limits import RateLimits
from chatloom.server.served import ServedModels
from chatloom.testing.serving import tiny

PASSWORD = "correct horse battery"
KEY = "sk-first-key-of-the-file"


@pytest.fixture(autouse=True)
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_COST", 2**8)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as opened:
        yield opened


def app_of(store: Store, key_file: Path | None = None, host: str = "127.0.0.1") -> FastAPI:
    """As `create_app` joins them, without a model."""
    app = FastAPI()
    errors.install(app)
    accounts = Accounts(store, None if key_file is None else KeyFile(key_file, ROLES))
    app.state.accounts, app.state.login_throttle = accounts, sign_in.throttle()
    app.include_router(sign_in.router)
    app.add_middleware(BodyLimits)
    app.add_middleware(RateLimits)
    app.add_middleware(Guard, accounts=accounts, door=Door(host))

    @app.get("/v1/models")
    @app.post("/v1/echo")
    async def mine(request: Request) -> str:
        return str(request.state.principal.name)

    return app


class Browser:
    """A client with cookies that sends the token of its last answer, as the page does."""

    def __init__(self, app: FastAPI, url: str = "http://127.0.0.1:8000", address: str = "10.1.1.1") -> None:
        self.client = TestClient(app, base_url=url, client=(address, 5000))
        self.csrf = ""

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"x-csrf-token": self.csrf, "sec-fetch-site": "same-origin"}
        response = self.client.request(method, path, json=body, headers=headers)
        if response.status_code == 200 and "csrf" in response.json():
            self.csrf = response.json()["csrf"]
        return response

    def login(self, name: str, password: str = PASSWORD) -> Any:
        self("GET", "/api/me")
        return self("POST", "/api/login", {"name": name, "password": password})


@pytest.fixture
def browser(store: Store) -> Callable[..., Browser]:
    app = app_of(store)
    return lambda **options: Browser(app, **options)


def code(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_on_ones_own_machine_one_is_in(browser: Callable[..., Browser]) -> None:
    me = browser()("GET", "/api/me").json()
    assert (me["name"], me["role"], me["signed_in"], me["local"]) == ("", "admin", True, True)
    assert set(me["may"]) == {"rate_others", "read_requests", "read_metrics", "manage_accounts"}


def test_in_and_out(browser: Callable[..., Browser], store: Store) -> None:
    Accounts(store).add_user("ana", password=PASSWORD, role="labeler")
    ana = browser()
    me = ana("GET", "/api/me").json()
    assert (me["name"], me["role"], me["signed_in"], me["local"], me["may"]) == ("", None, False, False, [])
    assert code(ana("GET", "/v1/models")) == (401, "missing_api_key")
    response = ana.login(" Ana ")
    assert response.json()["may"] == ["rate_others"]
    cookie = response.headers["set-cookie"]
    assert cookie.startswith("chatloom=")
    assert cookie.endswith("; Path=/; Max-Age=1209600; HttpOnly; SameSite=Strict")
    assert ana("GET", "/v1/models").json() == "ana"
    assert ana("POST", "/v1/echo").json() == "ana"
    stolen = cookie.split(";")[0]
    assert ana("POST", "/api/logout").status_code == 204
    assert code(ana("GET", "/v1/models")) == (401, "missing_api_key")
    assert browser().client.get("/v1/models", headers={"cookie": stolen}).status_code == 401
    assert ana("POST", "/api/logout").status_code == 204  # once more does no harm
    assert ana.login("ana").status_code == 200


def test_over_tls_the_cookie_is_secure(store: Store) -> None:
    Accounts(store).add_user("ana", password=PASSWORD)
    ana = Browser(app_of(store, host="0.0.0.0"), "https://chat.example.com")
    cookie = ana.login("ana").headers["set-cookie"]
    assert cookie.startswith("__Host-chatloom=")
    assert cookie.endswith("; HttpOnly; SameSite=Strict; Secure")


def test_another_site_cannot_sign_one_in_as_somebody_else(browser: Callable[..., Browser], store: Store) -> None:
    Accounts(store).add_user("ana", password=PASSWORD)
    body = {"name": "ana", "password": PASSWORD}
    client = browser().client
    assert code(client.post("/api/login", json=body)) == (403, "csrf_token_mismatch")
    headers = {"x-csrf-token": "local", "origin": "http://evil.example"}
    assert code(client.post("/api/login", json=body, headers=headers)) == (403, "cross_site_request")


def test_a_new_session_takes_the_place_of_the_old(browser: Callable[..., Browser], store: Store) -> None:
    for name in ("ana", "ben"):
        Accounts(store).add_user(name, password=PASSWORD)
    both = browser()
    first = both.login("ana").headers["set-cookie"].split(";")[0]
    assert both.login("ben").status_code == 200
    assert both("GET", "/v1/models").json() == "ben"
    assert browser().client.get("/v1/models", headers={"cookie": first}).status_code == 401


def test_wrong_passwords_become_slow(browser: Callable[..., Browser], store: Store) -> None:
    Accounts(store).add_user("ana", password=PASSWORD)
    thief = browser()
    answers = [thief.login("ana", "a wrong password") for _ in range(7)]
    assert [response.status_code for response in answers] == [401] * 5 + [429] * 2
    assert code(answers[0]) == (401, "wrong_password")
    assert code(answers[-1]) == (429, "too_many_logins")
    assert 0 < int(answers[-1].headers["retry-after"]) <= 30
    assert thief.login("ana").status_code == 429  # even with the right one
    assert browser(address="10.1.1.2").login("ana").status_code == 200
    assert thief.login("nobody", "a wrong password").json() == answers[0].json()  # names are not told apart


def test_change_of_password(browser: Callable[..., Browser], store: Store) -> None:
    Accounts(store).add_user("ana", password=PASSWORD)
    ana = browser()
    ana.login("ana")
    wrong = ana("POST", "/api/password", {"old": "a wrong password", "new": "another password"})
    assert code(wrong) == (403, "wrong_password")
    short = ana("POST", "/api/password", {"old": PASSWORD, "new": "short"})
    assert short.status_code == 400
    assert "8 to 1024" in short.text
    assert ana("POST", "/api/password", {"old": PASSWORD, "new": "another password"}).status_code == 204
    assert ana("GET", "/v1/models").status_code == 401
    assert ana.login("ana").status_code == 401
    assert ana.login("ana", "another password").status_code == 200


def test_an_administrators_accounts(browser: Callable[..., Browser], store: Store) -> None:
    Accounts(store).add_user("root", password=PASSWORD, role="admin")
    root, ben = browser(), browser()
    root.login("root")
    new = {"name": "ben", "password": "another password"}
    assert root("POST", "/api/accounts/users", new).json()["role"] == "user"
    assert root("POST", "/api/accounts/users", new).status_code == 400
    ben.login("ben", "another password")
    for method, path in (
        ("GET", "/api/accounts"),
        ("POST", "/api/accounts/users"),
        ("POST", "/api/accounts/keys"),
        ("DELETE", "/api/accounts/users/root"),
    ):
        assert code(ben(method, path)) == (403, "not_permitted")
    made = root("POST", "/api/accounts/keys", {"owner": "ben", "name": "laptop", "requests_per_minute": 2}).json()
    bearer = {"authorization": f"Bearer {made['secret']}"}
    program = browser().client
    assert program.get("/v1/models", headers=bearer).json() == "ben"
    assert [program.post("/v1/echo", headers=bearer).status_code for _ in range(3)] == [200, 200, 429]
    listed = root("GET", "/api/accounts")
    assert [user["name"] for user in listed.json()["users"]] == ["ben", "root"]
    assert [key["name"] for key in listed.json()["keys"]] == ["laptop"]
    for secret in (made["secret"], "scrypt", "digest", "another password"):
        assert secret not in listed.text
    assert root("DELETE", f"/api/accounts/keys/{made['id']}").status_code == 204
    assert program.get("/v1/models", headers=bearer).status_code == 401
    assert code(root("DELETE", "/api/accounts/users/root")) == (409, "own_account")
    assert root("DELETE", "/api/accounts/users/ben").status_code == 204
    assert ben("GET", "/v1/models").status_code == 401
    assert root("DELETE", "/api/accounts/users/ben").status_code == 400


def test_a_key_signs_in_where_there_are_only_keys(store: Store, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{KEY} name=ana\n")
    app = app_of(store, tmp_path / "keys")
    ana = Browser(app)
    ana("GET", "/api/me")
    assert ana("POST", "/api/login", {"key": "sk-not-the-key-of-the-file"}).status_code == 401
    assert ana("POST", "/api/login", {"key": KEY}).json()["name"] == "ana"
    assert ana("GET", "/v1/models").json() == "ana"


@pytest.mark.parametrize(
    "body", [None, [], "x", {"name": 3}, {"password": ["x"]}, {"name": "a" * 65}, {"password": "x" * 1025}, {"nme": ""}]
)
def test_logins_that_make_no_sense(browser: Callable[..., Browser], body: Any) -> None:
    assert browser()("POST", "/api/login", body).status_code in (400, 422)


def test_an_application_that_would_be_open_is_not_made(store: Store) -> None:
    with pytest.raises(ValueError, match="neither an API key nor a user"):
        create_app(ServedModels({"tiny": tiny()}), store, Settings(door=Door("0.0.0.0")))


def test_no_secret_is_logged_or_stored(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("uvicorn.access").propagate = True
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "keys").write_text(f"{KEY} name=ana\n")
    Accounts(store).add_user("root", password=PASSWORD, role="admin")
    app = app_of(store, folder / "keys")
    root = Browser(app)
    token = root.login("root").headers["set-cookie"].split(";")[0].split("=")[1]
    made = root("POST", "/api/accounts/keys", {"owner": "root"}).json()["secret"]
    secrets = [PASSWORD, KEY, made, token, root.csrf]
    for key in (KEY, made, "sk-a-key-that-is-wrong"):
        root.client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
    wrong = "a password that is wrong"
    answers = [root.login("root", wrong), root("POST", "/api/login", {"password": [wrong], "key": {"x": KEY}})]
    answers.append(root("POST", "/api/accounts/users", {"name": "x", "password": wrong[:3]}))
    answers.append(root("POST", "/api/password", {"old": wrong, "new": 3}))
    assert all(response.status_code in (400, 401, 403, 422) for response in answers)
    said = "".join(response.text for response in answers)
    data = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    assert b"root" in data
    for secret in (*secrets, wrong, "sk-a-key-that-is-wrong"):
        assert secret not in caplog.text
        assert secret not in said
        assert secret.encode() not in data
