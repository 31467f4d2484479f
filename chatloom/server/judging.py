"""The page's feedback: thumbs, choices of two, rankings, answers as they should have been; and the loop's figures.

A person judges answers in conversations of their own. The texts that the loop shows are other people's too, so only
those see them who may judge other people's answers; the rest see counts.
"""

import asyncio
import shlex
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from chatloom.feedback.export import Wanted, export
from chatloom.feedback.records import KINDS, Message, Rating
from chatloom.feedback.statistics import statistics
from chatloom.feedback.store import Store
from chatloom.server import errors
from chatloom.server.page_state import Id, Page, found, page_of, person_of

router = APIRouter(include_in_schema=False)  # the page's own, which may change with it
MAX_EXAMPLES = 8  # pairs that the loop shows
MAX_SHOWN = 600  # characters of each text there


class Rated(BaseModel):
    """A thumb, and why; 0 takes it back."""

    model_config = ConfigDict(extra="forbid")
    value: Literal[-1, 0, 1]
    tags: list[Annotated[str, Field(max_length=40)]] = Field(default=[], max_length=20)
    comment: str = Field(default="", max_length=4000)
    consent: bool = True


class Edited(BaseModel):
    """What an answer should have been."""

    model_config = ConfigDict(extra="forbid")
    text: str = Field(min_length=1, max_length=200_000)
    consent: bool = True


class Compared(BaseModel):
    """The better of two answers; `tie`: neither is."""

    model_config = ConfigDict(extra="forbid")
    chosen: Id
    rejected: Id
    tie: bool = False
    comment: str = Field(default="", max_length=4000)
    consent: bool = True


class Ranked(BaseModel):
    """Answers to one message, best first; those of one group are equally good."""

    model_config = ConfigDict(extra="forbid")
    groups: list[Annotated[list[Id], Field(min_length=1, max_length=32)]] = Field(min_length=1, max_length=32)
    consent: bool = True


@router.post("/api/messages/{id}/rating", status_code=204)
async def rate(request: Request, id: str, body: Rated) -> None:
    """Good or bad, and why."""
    page, person = page_of(request), person_of(request)
    await asyncio.to_thread(_judge, page, person, [id])
    await asyncio.to_thread(page.store.rate, id, rater=person, **body.model_dump())


@router.post("/api/messages/{id}/edit")
async def edit(request: Request, id: str, body: Edited) -> dict[str, Any]:
    """What the answer should have been: kept as feedback, and a branch to go on from."""
    page, person = page_of(request), person_of(request)

    def add() -> dict[str, Any]:
        (message,) = _judge(page, person, [id])
        page.store.edit(id, body.text, rater=person, consent=body.consent)
        own = page.store.add_message(
            message.conversation, parent=message.parent, role="assistant", content=body.text, status="done"
        )
        return {"message": page.view(own)}

    answer: dict[str, Any] = await asyncio.to_thread(add)
    return answer


@router.post("/api/comparisons", status_code=204)
async def compare(request: Request, body: Compared) -> None:
    """Which of two answers is better."""
    page, person = page_of(request), person_of(request)
    await asyncio.to_thread(_judge, page, person, [body.chosen, body.rejected])
    await asyncio.to_thread(page.store.compare, rater=person, **body.model_dump())


@router.post("/api/rankings", status_code=204)
async def rank(request: Request, body: Ranked) -> None:
    """Answers in order."""
    page, person = page_of(request), person_of(request)
    await asyncio.to_thread(_judge, page, person, [id for group in body.groups for id in group])
    await asyncio.to_thread(page.store.rank, body.groups, rater=person, consent=body.consent)


def _judge(page: Page, person: str, ids: list[str]) -> list[Message]:
    """The answers that are judged: this person's, and finished, for a failed one would take the others with it."""
    messages: list[Message] = [found(page.message, id, person) for id in ids]
    if any(message.status == "running" for message in messages):
        raise errors.invalid("An answer that is still being written cannot be judged; wait for its end or stop it.")
    if any(message.status == "failed" for message in messages):
        raise errors.invalid("An answer that failed cannot be judged; ask for another one.")
    return messages


# --- the loop -----------------------------------------------------------------------------------------------------


@router.get("/api/loop")
async def loop(request: Request) -> dict[str, Any]:
    """How much feedback there is, how far people agree, and what a reward model would train on."""
    principal = request.state.principal
    store = page_of(request).store
    place = store.place if principal.may("manage_accounts") else "DATABASE"  # a path tells of the server
    return await asyncio.to_thread(_figures, store, principal.may("rate_others"), place)


def _figures(store: Store, with_texts: bool, place: str) -> dict[str, Any]:
    counted = statistics(store)
    shares = {name: each for name, each in counted.agreement.items() if each.share is not None}
    judged = sum(each.num_units for each in shares.values())
    agreeing = sum(each.num_units * (each.share or 0.0) for each in shares.values())
    return {
        "total": counted.total,
        "withheld": counted.withheld,
        "raters": len(counted.by_rater),
        "kinds": {kind: counted.by_kind[kind] for kind in KINDS},
        "thumbs": {
            "up": sum(up for up, _ in counted.ratings.values()),
            "down": sum(d for _, d in counted.ratings.values()),
        },
        "models": [{"name": name, **counts} for name, counts in counted.by_model.items()],
        "agreement": agreeing / judged if judged else None,
        "agreement_units": judged,
        "pairs": counted.trainable["reward"].pairs,
        "rows": counted.trainable["reward"].rows,
        "notes": list(counted.trainable["reward"].notes),
        "texts": with_texts,
        "examples": _examples(store) if with_texts else [],
        "commands": [
            f"chatloom feedback export --database {shlex.quote(place)} --to reward --output feedback.jsonl",
            "chatloom reward --model MODEL --data feedback.jsonl --output-dir runs/reward",
        ],
    }


def _examples(store: Store) -> list[dict[str, str]]:
    """Of the newest comparisons some pairs, no more than two of a prompt."""
    times = [each.created for each in store.feedback() if not isinstance(each, Rating)]
    rows: list[dict[str, str]] = []
    newest = Wanted(since=sorted(times)[-MAX_EXAMPLES:][0]) if times else Wanted()
    for row in map(_example, export(store, "pairs", newest).rows):
        if sum(other["prompt"] == row["prompt"] for other in rows) < 2:
            rows.append(row)
    return rows[:MAX_EXAMPLES]


def _example(row: dict[str, Any]) -> dict[str, str]:
    """A pair as a line of a table: the last question and the two answers."""
    return {name: _last(row[name])[:MAX_SHOWN] for name in ("prompt", "chosen", "rejected")}


def _last(messages: Any) -> str:
    return messages if isinstance(messages, str) else str(messages[-1]["content"])
