"""`serving(name=model)` runs a real server on a free loopback port (`chatloom.testing.serving`) for a test."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from browsing import browser, site, visit  # noqa: F401

from chatloom.engine.language_model import LanguageModel
from chatloom.testing.serving import Running, serve, tiny


@pytest.fixture
def serving() -> Iterator[Callable[..., Running]]:
    """`serving(name=model, ...)` or `serving({name: model}, ...)`: as `serve`, until the end of the test."""
    with contextlib.ExitStack() as stack:

        def start(models: dict[str, LanguageModel] | None = None, **options: Any) -> Running:
            named = {name: options.pop(name) for name in list(options) if isinstance(options[name], LanguageModel)}
            return stack.enter_context(serve({**(models or {}), **named}, **options))

        yield start


@pytest.fixture(scope="session")
def tiny_server() -> Iterator[Running]:
    """One server of one tiny model, "tiny", for all tests that change nothing."""
    with serve({"tiny": tiny()}) as running:
        yield running
