"""The OpenAPI document is true: what schemathesis makes of it gets no 5xx and no answer that the document denies."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from chatloom.testing.serving import Running, serve, tiny

TRUE: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
PATHS = ["/health", "/metrics", "/api/requests", "/v1/models", "/v1/models/{name}"]
PATHS += ["/v1/chat/completions", "/v1/completions", "/v1/responses"]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serve({"tiny": tiny(context_length=64)}) as running:
        yield running


def document(server: Running) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.base_url}/openapi.json").json()
    return found


def tamed(case: schemathesis.Case) -> schemathesis.Case:
    """Mostly of a model that there is, and not of a hundred answers."""
    body: Any = case.body
    if isinstance(body, dict):
        if isinstance(body.get("model"), str) and len(body["model"]) % 3:
            body["model"] = "tiny"
        for name in ("n", "best_of"):
            if isinstance(body.get(name), int):
                body[name] = min(body[name], 2)
    return case


def test_it_has_every_route_of_the_api(server: Running) -> None:
    found = document(server)
    assert set(PATHS) <= set(found["paths"])
    assert "422" not in str(found["paths"])


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("path", PATHS)
def test_what_is_answered_is_what_it_says(server: Running, path: str, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_dict(document(server)).include(path=path)
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
            continue  # there is nothing to be wrong
        with requests.Session() as session:
            _ask(operation.as_strategy(generation_mode=mode).map(tamed), server.base_url, session)


def _ask(cases: Any, base_url: str, session: requests.Session) -> None:
    @settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(cases)
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(base_url=base_url, session=session, checks=TRUE)

    ask()
