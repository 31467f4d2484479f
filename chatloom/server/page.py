"""The page: its files, and its routes joined to an application.

The files need no build and nothing from elsewhere; no script or style stands within another file, so that the strict
policy of `guard` holds. Text of models reaches the page as safe HTML (`markdown`) and never as anything else.
"""

from pathlib import Path

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from chatloom.feedback.store import Store
from chatloom.server import conversations, judging, markdown
from chatloom.server.page_state import Page
from chatloom.server.served import ServedModels

WEB = Path(__file__).parent / "web"

router = APIRouter(include_in_schema=False)


def install(app: FastAPI, store: Store, models: ServedModels) -> Page:
    """Add the page to an app. `Page.answers.close()` belongs before the engines stop."""
    page = app.state.page = Page(store, models)
    store.when_forgotten(markdown.forget)
    for each in (router, conversations.router, judging.router):
        app.include_router(each)
    app.mount("/web", _Files(directory=WEB))
    return page


class _Files(StaticFiles):
    """The page's own files; a browser asks each time whether one has changed."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


@router.get("/")
async def index() -> FileResponse:
    """The page."""
    return FileResponse(WEB / "index.html", headers={"Cache-Control": "no-cache"})


@router.get("/favicon.ico")
async def favicon() -> FileResponse:
    """Its sign."""
    return FileResponse(WEB / "icon.svg", media_type="image/svg+xml")
