"""Past requests of the API, for the log view: what was asked of which model, by whom, with what outcome. Never text."""

import time
from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import delete, insert, select

from chatloom.feedback import tables as t
from chatloom.feedback.database import Database
from chatloom.feedback.records import PastRequest


class Requests(Database):
    """The part of the store that remembers requests."""

    def log_requests(self, requests: Sequence[PastRequest]) -> None:
        """Remember some requests in one transaction."""
        if requests:
            with self.writing() as connection:
                connection.execute(insert(t.requests), [asdict(request) for request in requests])

    def requests(
        self,
        *,
        limit: int = 100,
        offset: int = 0,
        model: str | None = None,
        caller: str | None = None,
        failed: bool = False,
        since: float | None = None,
    ) -> list[PastRequest]:
        """Past requests, the newest first; with `failed`, only those of a status of 400 and more."""
        c = t.requests.c
        query = select(t.requests).order_by(c.created.desc(), c.id.desc()).limit(limit).offset(offset)
        if model is not None:
            query = query.where(c.model == model)
        if caller is not None:
            query = query.where(c.caller == caller)
        if failed:
            query = query.where(c.status >= 400)
        if since is not None:
            query = query.where(c.created >= since)
        with self.reading() as connection:
            return [PastRequest(**row._mapping) for row in connection.execute(query)]

    def forget_requests(self, *, older_than_seconds: float) -> int:
        """Delete the requests older than that; how many there were."""
        with self.writing() as connection:
            query = delete(t.requests).where(t.requests.c.created < time.time() - older_than_seconds)
            return connection.execute(query).rowcount
