"""The page's routes for conversations: their list and trees, questions, answers and their events, export and import.

Every route works for one person (`request.state.principal`): what belongs to another is not found.
"""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from chatloom.engine.request import SamplingParams
from chatloom.server import errors
from chatloom.server.events import EventStream
from chatloom.server.interchange import exported, read_conversation
from chatloom.server.page_state import Id, found, page_of, person_of, summary

PAGE_SIZE = 50
MAX_ANSWERS = 8  # asked for at once
MAX_TITLE = 60  # characters that a conversation's first message gives it as a title

router = APIRouter(include_in_schema=False)  # the page's own, which may change with it


# --- models and conversations -------------------------------------------------------------------------------------


@router.get("/api/models")
async def models(request: Request) -> dict[str, Any]:
    """Which models can answer; an adapter names its `parent`."""
    return {
        "models": [
            {"name": each.name, "parent": each.parent, "context_length": each.context_length}
            for each in page_of(request).models.values()
        ]
    }


class NewConversation(BaseModel):
    """How a conversation begins."""

    model_config = ConfigDict(extra="forbid")
    title: str = Field(default="", max_length=200)
    system: str = Field(default="", max_length=20_000)


class Changed(BaseModel):
    """What can be changed of a conversation."""

    model_config = ConfigDict(extra="forbid")
    title: str = Field(min_length=1, max_length=200)


@router.get("/api/conversations")
async def conversations(
    request: Request,
    search: Annotated[str, Query(max_length=200)] = "",
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> dict[str, Any]:
    """The last used first, fifty at a time; with `search`, those whose title or messages hold it."""
    found = await asyncio.to_thread(
        page_of(request).store.conversations,
        owner=person_of(request),
        search=search or None,
        limit=PAGE_SIZE,
        offset=offset,
    )
    return {"conversations": [summary(each) for each in found]}


@router.post("/api/conversations")
async def create(request: Request, body: NewConversation) -> dict[str, Any]:
    """A new conversation."""
    made = await asyncio.to_thread(
        page_of(request).store.create_conversation, owner=person_of(request), title=body.title, system=body.system
    )
    return {"conversation": summary(made)}


@router.get("/api/conversations/{id}")
async def conversation(request: Request, id: str) -> dict[str, Any]:
    """The whole tree."""
    return await asyncio.to_thread(found, page_of(request).tree, id, person_of(request))


@router.patch("/api/conversations/{id}")
async def change(request: Request, id: str, body: Changed) -> dict[str, Any]:
    """Another title."""
    store, person = page_of(request).store, person_of(request)
    changed = await asyncio.to_thread(found, store.rename_conversation, id, body.title, owner=person)
    return {"conversation": summary(changed)}


@router.delete("/api/conversations/{id}", status_code=204)
async def delete(request: Request, id: str) -> None:
    """Delete it, with its feedback, everywhere."""
    page, person = page_of(request), person_of(request)
    await asyncio.to_thread(found, page.store.conversation, id, owner=person)
    for message in await asyncio.to_thread(page.store.messages, id):
        await page.answers.stop(message.id)
    await asyncio.to_thread(found, page.store.delete_conversation, id, owner=person)


# --- questions and answers ----------------------------------------------------------------------------------------


class Said(BaseModel):
    """What a person says, and after which message."""

    model_config = ConfigDict(extra="forbid")
    parent: Id | None = None
    content: str = Field(min_length=1, max_length=1_000_000)


class Sampling(BaseModel):
    """How answers are sampled."""

    model_config = ConfigDict(extra="forbid")
    temperature: float = Field(default=0.7, ge=0, le=10)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    max_tokens: int = Field(default=512, ge=1, le=1_000_000)
    seed: int | None = Field(default=None, ge=0, lt=2**63)

    def params(self) -> SamplingParams:
        """As the engine takes them."""
        return SamplingParams(**self.model_dump())


class Asked(BaseModel):
    """Who shall answer: one model `n` times, or several `models` once each."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = Field(default=None, max_length=300)
    models: list[Annotated[str, Field(max_length=300)]] | None = Field(
        default=None, min_length=1, max_length=MAX_ANSWERS
    )
    n: int = Field(default=1, ge=1, le=MAX_ANSWERS)
    sampling: Sampling = Sampling()


class Continued(BaseModel):
    """How an answer goes on."""

    model_config = ConfigDict(extra="forbid")
    sampling: Sampling = Sampling()


@router.post("/api/conversations/{id}/messages")
async def say(request: Request, id: str, body: Said) -> dict[str, Any]:
    """A message of the person's; another one after the same parent is a branch."""
    page, person = page_of(request), person_of(request)
    if not body.content.strip():
        raise errors.invalid("The message is empty.", param="content")

    def add() -> dict[str, Any]:
        here = page.store.conversation(id, owner=person)
        message = page.store.add_message(id, parent=body.parent, role="user", content=body.content)
        if not here.title:
            page.store.rename_conversation(id, title_of(body.content), owner=person)
        return {"message": page.view(message), "conversation": summary(page.store.conversation(id, owner=person))}

    answer: dict[str, Any] = await asyncio.to_thread(found, add)
    return answer


def title_of(text: str) -> str:
    """The first words of a message."""
    line = " ".join(text.split())
    if len(line) <= MAX_TITLE:
        return line
    whole = line[:MAX_TITLE].rsplit(" ", 1)[0]
    return (whole if len(whole) > MAX_TITLE // 2 else line[:MAX_TITLE]) + "…"


@router.post("/api/messages/{id}/answers")
async def answer(request: Request, id: str, body: Asked) -> dict[str, Any]:
    """Begin one or several answers; they go on in the server whoever looks."""
    page, person = page_of(request), person_of(request)
    question = await asyncio.to_thread(found, page.message, id, person)
    if question.role != "user":
        raise errors.invalid("Only a message of the user can be answered; this one is an answer itself.")
    here = await asyncio.to_thread(page.store.conversation, question.conversation, owner=person)
    names = body.models or [body.model or next(iter(page.models))] * body.n
    chosen = [page.models.find(name) for name in names]
    messages = await page.answers.begin(here, question, chosen, body.sampling.params())
    return {"messages": await asyncio.to_thread(lambda: [page.view(each) for each in messages])}


@router.post("/api/messages/{id}/stop")
async def stop(request: Request, id: str) -> dict[str, Any]:
    """End an answer; what there is of it stays."""
    page, person = page_of(request), person_of(request)
    await asyncio.to_thread(found, page.message, id, person)
    await page.answers.stop(id)
    message = await asyncio.to_thread(found, page.message, id, person)
    return {"message": await asyncio.to_thread(page.view, message)}


@router.post("/api/messages/{id}/continue")
async def go_on(request: Request, id: str, body: Continued) -> dict[str, Any]:
    """Continue an answer that was stopped or cut off."""
    page = page_of(request)
    message = await asyncio.to_thread(found, page.message, id, person_of(request))
    message = await page.answers.go_on(message, body.sampling.params())
    return {"message": await asyncio.to_thread(page.view, message)}


@router.get("/api/messages/{id}/events", response_class=Response)
async def events(request: Request, id: str, also: Annotated[str, Query(max_length=2000)] = "") -> EventStream:
    """Server-sent events of an answer, from its beginning whenever one asks; and of those in `also` (ids, commas)."""
    page, person = page_of(request), person_of(request)
    ids = list(dict.fromkeys([id, *filter(None, also.split(","))]))
    for each in ids:
        await asyncio.to_thread(found, page.message, each, person)
    return EventStream(page.answers.events(ids))


# --- in and out ---------------------------------------------------------------------------------------------------


class Imported(BaseModel):
    """Conversations of an export of ours, or of ChatGPT's conversations.json."""

    model_config = ConfigDict(extra="forbid")
    conversations: list[dict[str, Any]] = Field(max_length=10_000)


@router.get("/api/export")
async def export(request: Request, conversation: Annotated[str, Query(max_length=64)] = "") -> dict[str, Any]:
    """All conversations of a person, or one."""
    store, person = page_of(request).store, person_of(request)
    return dict(await asyncio.to_thread(found, exported, store, person, conversation or None))


@router.post("/api/import")
async def bring_in(request: Request, body: Imported) -> dict[str, int]:
    """Conversations from a file; those without a message are left out."""
    store, person = page_of(request).store, person_of(request)

    def add() -> int:
        read = [read_conversation(each, index) for index, each in enumerate(body.conversations)]
        return len(store.import_conversations([each for each in read if each is not None], owner=person))

    return {"imported": await asyncio.to_thread(add)}
