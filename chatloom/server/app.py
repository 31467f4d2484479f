"""The application: what answers under which path, and what every request passes on its way.

Order, from the outside: `observe` (a name for every request, its log and figures), `guard` (who asks, from where),
`limits` (how often), `bodies` (how much), then the routes. Errors leave as OpenAI's (`errors`).
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

import chatloom
from chatloom.feedback.store import Store
from chatloom.server import errors, observe, openai, page, responses, sign_in
from chatloom.server.accounts import Accounts
from chatloom.server.bodies import BodyLimits
from chatloom.server.guard import Door, Guard, check_door
from chatloom.server.key_file import KeyFile
from chatloom.server.limits import Limits, RateLimits
from chatloom.server.served import ServedModels


@dataclass(frozen=True)
class Settings:
    """What a server does otherwise than others."""

    # Where it is, and by which names it may be called.
    door: Door = field(default_factory=Door)
    # The operator's keys; None: those in the database, and on one's own machine nobody needs one.
    key_file: KeyFile | None = None
    # What a key may use for which nothing else was said.
    limits: Limits = field(default_factory=Limits)


def create_app(models: ServedModels, store: Store, settings: Settings | None = None) -> FastAPI:
    """The application over some models and a database; its life starts and stops the engines.

    Raises ValueError where strangers would reach a server that asks nobody who they are.
    """
    settings = settings or Settings()
    accounts = Accounts(store, settings.key_file)
    check_door(settings.door, accounts)
    past, metrics, draining = observe.Past(store), observe.Metrics(models), observe.Draining()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        models.start(metrics.note)
        try:
            async with past.writing():
                yield
        finally:
            await shown.answers.close()
            models.stop()

    # Pages of documentation would fetch scripts from elsewhere.
    app = FastAPI(title="Chatloom", version=chatloom.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.models, app.state.store, app.state.settings = models, store, settings
    app.state.accounts, app.state.login_throttle = accounts, sign_in.throttle()
    app.state.past, app.state.metrics, app.state.draining = past, metrics, draining
    errors.install(app)
    app.include_router(observe.router)
    app.include_router(openai.router)
    app.include_router(sign_in.router)
    shown = page.install(app, store, models)
    app.include_router(responses.router)
    app.add_middleware(BodyLimits)  # the innermost first
    app.add_middleware(RateLimits, default=settings.limits)
    app.add_middleware(Guard, accounts=accounts, door=settings.door)
    app.add_middleware(observe.Observe, metrics=metrics, past=past, draining=draining)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document: FastAPI's, without the 422 that nothing here answers."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document.get("components", {}).get("schemas", {}).pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema
