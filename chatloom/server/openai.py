"""OpenAI's API: /v1/models here, and the routers that answer."""

from fastapi import APIRouter, Request

from chatloom.server import answering, chat_completions, completions, errors
from chatloom.server.schemas import ModelCard, ModelList
from chatloom.server.served import Served

router = APIRouter()
router.include_router(chat_completions.router)
router.include_router(completions.router)


@router.get("/v1/models", responses=errors.RESPONSES)
async def list_models(request: Request) -> ModelList:
    """The models that are served, adapters among them."""
    return ModelList(data=[_card(served) for served in answering.models_of(request).values()])


@router.get("/v1/models/{name:path}", responses=errors.RESPONSES)
async def retrieve_model(name: str, request: Request) -> ModelCard:
    """One of them."""
    return _card(answering.models_of(request).find(name))


def _card(served: Served) -> ModelCard:
    return ModelCard(id=served.name, created=served.created, parent=served.parent, max_model_len=served.context_length)
