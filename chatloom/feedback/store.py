"""The store: conversations, feedback and past requests in one database."""

from chatloom.feedback.conversations import Conversations
from chatloom.feedback.imports import Imports
from chatloom.feedback.judgements import Judgements
from chatloom.feedback.records import NotFound
from chatloom.feedback.requests import Requests

__all__ = ["NotFound", "Store"]


class Store(Conversations, Judgements, Requests, Imports):
    """An open store; `Store.open("feedback.db")`. Synchronous, and safe to call from any thread."""
