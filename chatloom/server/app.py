"""The application: what answers under which path, and what every request passes on its way.

Order, from the outside: `observe` (a name for every request, its log and figures), then security (`guard`, `limits`),
then the routes. Errors leave as OpenAI's (`errors`).
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI

import chatloom
from chatloom.server import errors, openai, security
from chatloom.server.security import SecurityConfig
from chatloom.server.served import ServedModels


@dataclass(frozen=True)
class Settings:
    """What a server does otherwise than others."""

    # Where it is bound to, which decides who may ask.
    host: str = "127.0.0.1"
    # How long running answers may go on after the server was told to end.
    drain_seconds: float = 30.0
    # Who may use it, and how much.
    security: SecurityConfig = field(default_factory=SecurityConfig)


def create_app(models: ServedModels, store: Any = None, settings: Settings | None = None) -> FastAPI:
    """The application over some models and a `feedback.Store`; its life starts and stops the engines."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        models.start()
        try:
            yield
        finally:
            models.stop()

    app = FastAPI(title="Chatloom", version=chatloom.__version__, lifespan=lifespan)
    app.state.models, app.state.store, app.state.settings = models, store, settings or Settings()
    errors.install(app)
    app.include_router(openai.router)
    # responses (tools), page (page) come here.
    security.install(app, database=store, host=app.state.settings.host, config=app.state.settings.security)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether it answers."""
        return {"status": "ok"}

    return app
