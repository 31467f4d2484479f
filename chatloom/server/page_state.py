"""What the page's routes share: the store, the models, the answers under way, and what is told of a message."""

from typing import Annotated, Any

from fastapi import Request
from pydantic import Field

from chatloom.feedback.records import Conversation, Message, NotFound, Rating
from chatloom.feedback.store import Store
from chatloom.server import errors
from chatloom.server.markdown import render_blocks
from chatloom.server.running import Answers, can_continue, shown_context
from chatloom.server.served import ServedModels

Id = Annotated[str, Field(max_length=64)]


class Page:
    """What the routes share: the store, the models, and the answers under way."""

    def __init__(self, store: Store, models: ServedModels) -> None:
        self.store, self.models = store, models
        self.answers = Answers(store, models, self.view)

    def view(self, message: Message, rating: Rating | None = None) -> dict[str, Any]:
        """A message as the page is told of it."""
        shown: dict[str, Any] = {
            name: getattr(message, name) for name in ("id", "parent", "role", "content", "created", "status")
        }
        if message.role == "user":
            return shown
        made = message.made
        shown |= {
            "blocks": render_blocks(message.content),
            "can_continue": can_continue(message),
            "problem": self.answers.problems.get(message.id),
            "rating": None,
            "made": None,
            "figures": None,
        }
        if rating is not None:
            shown["rating"] = {"value": rating.value, "tags": list(rating.tags), "comment": rating.comment}
        if made is not None:
            served = self.models.get(made.adapter or made.model)
            speed = round(len(made.tokens) / made.seconds, 1) if made.seconds and made.tokens else None
            shown["made"] = {
                "model": made.model,
                "adapter": made.adapter,
                "finish_reason": made.finish_reason,
                "tokens_per_second": speed,
            }
            shown["figures"] = {
                "tokens_per_second": speed,
                "context_used": len(made.prompt_tokens) + len(made.tokens),
                "context": None if served is None else shown_context(served),
            }
        return shown

    def tree(self, id: str, person: str) -> dict[str, Any]:
        """A conversation with all its messages."""
        conversation = self.store.conversation(id, owner=person)
        ratings = self.store.feedback("rating", rater=person, consent=None, conversation=id)
        rated = {rating.answer.id: rating for rating in ratings if isinstance(rating, Rating)}
        messages = [self.view(each, rated.get(each.id)) for each in self.store.messages(id)]
        return {"conversation": summary(conversation), "messages": messages}

    def message(self, id: str, person: str) -> Message:
        """A message of this person's."""
        return self.store.message(id, owner=person)


def page_of(request: Request) -> Page:
    """The page of the app that serves a request."""
    page: Page = request.app.state.page
    return page


def person_of(request: Request) -> str:
    """Whose conversations these are; "" is the one person of a server on one's own machine."""
    principal = getattr(request.state, "principal", None)
    return "" if principal is None else str(principal.name)


def summary(conversation: Conversation) -> dict[str, Any]:
    """A conversation without its messages."""
    return {name: getattr(conversation, name) for name in ("id", "title", "system", "created", "updated")}


def found(work: Any, *given: Any, **named: Any) -> Any:
    """Do it; what is not there, or is somebody else's, is a 404."""
    try:
        return work(*given, **named)
    except NotFound as error:
        raise errors.APIError(404, str(error), type="invalid_request_error", code="not_found") from error
