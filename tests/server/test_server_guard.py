"""The door: names, sites, tokens, roles and headers, in front of an application that answers whatever is asked."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from chatloom.feedback.store import Store
from chatloom.server.accounts import ROLES, Accounts, Principal
from chatloom.server.guard import SECURITY_HEADERS, Door, Guard, check_door, csrf_token, names
from chatloom.server.key_file import KeyFile

KEY = "sk-first-key-of-the-file"
PASSWORD = "correct horse battery"


async def who(request: Request) -> JSONResponse:
    principal: Principal | None = request.state.principal
    return JSONResponse(None if principal is None else [principal.name, principal.role])


async def broken(request: Request) -> JSONResponse:
    raise RuntimeError("nobody foresaw this")


def app_of(accounts: Accounts, door: Door) -> Guard:
    async def own(request: Request) -> PlainTextResponse:
        return PlainTextResponse("own", headers={"content-security-policy": "default-src 'none'"})

    routes = [Route("/broken", broken), Route("/own", own)]
    routes.append(Route("/{path:path}", who, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]))
    return Guard(Starlette(routes=routes), accounts=accounts, door=door)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as opened:
        yield opened


@pytest.fixture
def key_file(tmp_path: Path) -> KeyFile:
    (tmp_path / "keys").write_text(f"{KEY} name=ci\nsk-second-key-of-the-file name=root role=admin\n")
    return KeyFile(tmp_path / "keys", ROLES)


Visit = Callable[..., Any]


def visitor(accounts: Accounts, door: Door | None = None, url: str = "http://127.0.0.1:8000") -> TestClient:
    return TestClient(app_of(accounts, door or Door()), base_url=url, raise_server_exceptions=False)


@pytest.fixture
def local(store: Store) -> TestClient:
    return visitor(Accounts(store))


def code(response: Any) -> tuple[int, str]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["code"]


# --- one's own machine --------------------------------------------------------------------------------------------


def test_on_ones_own_machine_nobody_signs_in(local: TestClient) -> None:
    assert local.get("/v1/models").json() == ["", "admin"]
    assert local.get("/metrics").json() == ["", "admin"]
    assert local.post("/v1/chat/completions", json={}).json() == ["", "admin"]
    with_key = {"authorization": "Bearer whatever the client has"}
    assert local.post("/v1/chat/completions", json={}, headers=with_key).json() == ["", "admin"]


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:9", "[::1]:8000", "LOCALHOST:8000"])
def test_names_of_loopback(local: TestClient, host: str) -> None:
    assert local.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.2", "::1"],
)
def test_another_name_is_refused_even_for_the_page(local: TestClient, host: str) -> None:
    """DNS rebinding: a site's own name that suddenly leads to this machine."""
    for path in ("/", "/web/js/main.js", "/v1/models", "/health"):
        response = local.get(path, headers={"host": host})
        assert response.status_code in (400, 403)
    assert code(local.get("/v1/models", headers={"host": "evil.example"})) == (403, "host_not_allowed")
    assert "--allowed-hosts evil.example" in local.get("/", headers={"host": "evil.example"}).text


@pytest.mark.parametrize("host", ["", "a b", "a/b", "local\thost", "localhost:", "localhost:port", "x@localhost"])
def test_a_host_that_is_no_name(local: TestClient, host: str) -> None:
    assert code(local.get("/", headers={"host": host})) == (400, "invalid_host")


def test_what_came_through_a_proxy_is_not_from_this_machine(local: TestClient) -> None:
    for header in ("x-forwarded-for", "forwarded", "x-real-ip", "x-forwarded-host"):
        assert code(local.get("/v1/models", headers={header: "for=1.2.3.4"})) == (401, "missing_api_key")


# --- other web sites ----------------------------------------------------------------------------------------------

TOKEN = {"x-csrf-token": "local"}


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://localhost:8000"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_what_another_site_has_a_browser_send_is_refused(local: TestClient, headers: dict[str, str]) -> None:
    for path in ("/v1/chat/completions", "/api/conversations", "/api/login"):
        response = local.post(path, json={}, headers={**headers, **TOKEN})
        assert code(response) == (403, "cross_site_request")
    assert code(local.get("/api/conversations", headers=headers)) == (403, "cross_site_request")
    assert local.get("/", headers=headers).status_code == 200  # a link to the page is only a link


def test_the_page_itself_writes_with_its_token(local: TestClient) -> None:
    own = {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}
    assert local.post("/api/conversations", headers={**own, **TOKEN}).status_code == 200
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert code(local.request(method, "/api/conversations", headers=own)) == (403, "csrf_token_mismatch")
    assert local.get("/api/conversations", headers=own).status_code == 200


def test_basic_authorization_is_no_key_and_exempts_from_nothing(local: TestClient) -> None:
    """A browser sends it by itself, for instance to a proxy that asks for it."""
    basic = {"authorization": "Basic dTpw"}
    assert code(local.post("/api/conversations", headers=basic)) == (403, "csrf_token_mismatch")


# --- keys ---------------------------------------------------------------------------------------------------------


def test_with_a_key_file_everybody_needs_a_key(store: Store, key_file: KeyFile) -> None:
    visit = visitor(Accounts(store, key_file))
    response = visit.get("/v1/models")
    assert code(response) == (401, "missing_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    response = visit.get("/v1/models", headers={"authorization": "Bearer sk-wrong-key-wrong-key"})
    assert code(response) == (401, "invalid_api_key")
    assert "sk-wrong" not in response.text
    for value in ("", "Bearer", "Bearer ", KEY, f"Basic {KEY}"):
        assert visit.get("/v1/models", headers={"authorization": value}).status_code == 401
    for value in (f"Bearer {KEY}", f"bearer   {KEY} "):
        assert visit.get("/v1/models", headers={"authorization": value}).json() == ["ci", "user"]
    assert visit.post("/api/conversations", headers={"authorization": f"Bearer {KEY}"}).json() == ["ci", "user"]


def test_what_is_open_without_signing_in(store: Store, key_file: KeyFile) -> None:
    visit = visitor(Accounts(store, key_file))
    for path in ("/", "/health", "/web/js/main.js", "/api/me", "/favicon.ico"):
        response = visit.get(path)
        assert (response.status_code, response.json()) == (200, None)
    assert visit.post("/api/login", headers=TOKEN).json() is None
    for path in ("/metrics", "/openapi.json", "/docs", "/api/conversations", "/web", "/apix", "/healthy", "/v1/models"):
        assert visit.get(path).status_code == 401
    assert visit.post("/web/x").status_code == 401


def test_what_a_role_may(store: Store, key_file: KeyFile) -> None:
    visit = visitor(Accounts(store, key_file))
    for path in ("/metrics", "/api/requests", "/api/accounts", "/api/accounts/users/x"):
        user = visit.get(path, headers={"authorization": f"Bearer {KEY}"})
        assert code(user) == (403, "not_permitted")
        admin = visit.get(path, headers={"authorization": "Bearer sk-second-key-of-the-file"})
        assert admin.json() == ["root", "admin"]


# --- sessions -----------------------------------------------------------------------------------------------------


def test_a_session(store: Store) -> None:
    accounts = Accounts(store)
    accounts.add_user("ana", password=PASSWORD, role="labeler")
    visit = visitor(accounts)
    assert visit.get("/api/conversations").status_code == 401
    token = accounts.open_session(Principal("ana", "labeler"))
    cookie = {"cookie": f'other="a b; chatloom={token}'}
    assert visit.get("/api/conversations", headers=cookie).json() == ["ana", "labeler"]
    for path in (
        "/api/conversations",
        "/v1/chat/completions",
    ):  # a cookie is sent by any site's request: both are guarded
        for given in ({}, {"x-csrf-token": ""}, TOKEN, {"x-csrf-token": csrf_token("another")}):
            assert code(visit.post(path, headers={**cookie, **given})) == (403, "csrf_token_mismatch")
        right = {"x-csrf-token": csrf_token(token)}
        assert visit.post(path, headers={**cookie, **right}).json() == ["ana", "labeler"]
    assert token not in csrf_token(token)
    accounts.close_session(token)
    assert visit.get("/api/conversations", headers=cookie).status_code == 401
    assert visit.get("/api/me", headers=cookie).json() is None


def test_over_tls_only_the_cookie_that_belongs_to_this_host_counts(store: Store) -> None:
    accounts = Accounts(store)
    accounts.add_user("ana", password=PASSWORD)
    token = accounts.open_session(Principal("ana", "user"))
    visit = visitor(accounts, Door("0.0.0.0"), "https://chat.example.com")
    assert visit.get("/api/me", headers={"cookie": f"chatloom={token}"}).json() is None
    assert visit.get("/api/me", headers={"cookie": f"__Host-chatloom={token}"}).json() == ["ana", "user"]


# --- where it is bound --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "chat.example.com", ""])
def test_elsewhere_than_on_loopback_it_wants_a_key_or_a_user(store: Store, key_file: KeyFile, host: str) -> None:
    with pytest.raises(
        ValueError, match=r"--api-key-file F .* add-user NAME --role admin .* leave --host at 127.0.0.1"
    ):
        check_door(Door(host), Accounts(store))
    check_door(Door(host), Accounts(store, key_file))
    Accounts(store).add_user("ana", password=PASSWORD)
    check_door(Door(host), Accounts(store))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]"])
def test_loopback(store: Store, host: str) -> None:
    check_door(Door(host), Accounts(store))


def test_elsewhere_the_last_user_leaves_a_closed_door(store: Store) -> None:
    accounts = Accounts(store)
    visit = visitor(accounts, Door("0.0.0.0"), "http://10.0.0.1")
    assert visit.get("/v1/models").status_code == 401
    assert visit.get("/v1/models", headers={"host": "127.0.0.1"}).status_code == 401


def test_allowed_hosts(store: Store, key_file: KeyFile) -> None:
    accounts = Accounts(store, key_file)
    key = {"authorization": f"Bearer {KEY}"}
    for host, names_, allowed, refused in (
        ("127.0.0.1", ("chat.example.com",), ("chat.example.com", "localhost:8000"), ("evil.example",)),
        ("0.0.0.0", ("chat.example.com",), ("chat.example.com:443",), ("evil.example", "localhost")),
        ("0.0.0.0", (), ("anything.example", "10.0.0.1:8000"), ()),
    ):
        visit = visitor(accounts, Door(host, names(names_)))
        assert all(visit.get("/v1/models", headers={**key, "host": name}).status_code == 200 for name in allowed)
        assert all(visit.get("/v1/models", headers={**key, "host": name}).status_code == 403 for name in refused)


@pytest.mark.parametrize("name", ["https://chat.example.com", "chat.example.com:443", "*", "a/b", ""])
def test_wrong_allowed_hosts(name: str) -> None:
    with pytest.raises(ValueError, match="without scheme and port"):
        names([name])


# --- answers ------------------------------------------------------------------------------------------------------


def test_every_answer_has_the_headers(local: TestClient) -> None:
    for path, status in (("/", 200), ("/v1/models", 200), ("/broken", 500), ("/api/conversations/../x", 200)):
        response = local.get(path)
        assert response.status_code == status
        assert SECURITY_HEADERS.items() <= dict(response.headers).items()
    for response in (local.post("/api/x"), local.get("/", headers={"host": "evil.example"})):
        assert response.status_code == 403
        assert SECURITY_HEADERS.items() <= dict(response.headers).items()
    assert local.get("/v1/models").headers["cache-control"] == "no-store"
    assert "cache-control" not in local.get("/").headers
    assert local.get("/own").headers.get_list("content-security-policy") == ["default-src 'none'"]
    assert not any(name.startswith("access-control") for name in local.get("/v1/models").headers)


def test_the_policy_lets_nothing_run_but_our_own_files() -> None:
    policy = dict(part.split(" ", 1) for part in SECURITY_HEADERS["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in str(policy)
    assert "http" not in str(policy)


def test_what_nobody_foresaw_says_nothing(local: TestClient) -> None:
    response = local.get("/broken")
    assert response.status_code == 500
    assert "foresaw" not in response.text


@pytest.mark.parametrize(
    "path", ["/web/../secret", "/web/./x", "//etc/passwd", "/web//etc/passwd", "/web/..\\secret", "/web/\0", "web"]
)
def test_paths_that_mean_another_one(store: Store, path: str) -> None:
    """As they are after the server has decoded them, once."""
    sent: list[Any] = []

    async def request() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "headers": [(b"host", b"localhost")], "scheme": "http"}
        await app_of(Accounts(store), Door())({**scope, "query_string": b""}, None, send)  # type: ignore[arg-type]

    import asyncio

    asyncio.run(request())
    assert sent[0]["status"] == 404


def test_web_sockets_are_closed(local: TestClient) -> None:
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), local.websocket_connect("/v1/realtime"):
        pass
