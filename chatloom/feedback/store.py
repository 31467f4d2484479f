"""The store: conversations, feedback and past requests in one database."""

from chatloom.feedback.conversations import Conversations
from chatloom.feedback.imports import Imports
from chatloom.feedback.judgements import Judgements
from chatloom.feedback.records import NotFound
from chatloom.feedback.requests import Requests
from chatloom.feedback.statistics import Statistics, statistics

__all__ = ["NotFound", "Store"]


class Store(Conversations, Judgements, Requests, Imports):
    """An open store; `Store.open("feedback.db")`. Synchronous, and safe to call from any thread."""

    def statistics(self) -> Statistics:
        """What feedback there is, and what it would train."""
        return statistics(self)
