"""A server that ends gracefully: told to, it lets running answers finish and refuses new ones with 503.

The first signal begins that, within a bound; what still runs then is cut off and told so. A second signal ends at once.
While it lasts the server goes on listening, so that a balancer reads in /health that it is about to end.
"""

import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from chatloom.server import observe
from chatloom.server.bodies import uvicorn_options

DRAIN_SECONDS = 30.0
_TELL_SECONDS = 1.0  # for those that are cut off to hear of it


class Server(uvicorn.Server):
    """uvicorn, with its quiet end."""

    def __init__(
        self,
        app: FastAPI,
        *,
        drain_seconds: float = DRAIN_SECONDS,
        on_started: Callable[[], None] | None = None,
        **options: Any,
    ) -> None:
        """`on_started` is called when it listens; `options` are those of `uvicorn.Config`."""
        usual = {"log_config": None, "access_log": False, "timeout_graceful_shutdown": 2, **uvicorn_options()}
        super().__init__(uvicorn.Config(app, lifespan="on", **usual | options))
        self._draining: observe.Draining = app.state.draining
        self._models = app.state.models
        self._seconds = drain_seconds
        self._on_started = on_started
        self._until: float | None = None
        self._cut = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if self._on_started is not None and self.started:
            self._on_started()

    def end(self) -> None:
        """Begin to end; again: end now."""
        if self._draining.begun:
            self.should_exit = self.force_exit = True
            return
        self._draining.begun = True
        observe.log("ending", in_flight=self._draining.in_flight, answers=self._models.num_live)
        self._until = time.monotonic() + self._seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal."""
        self.end()

    async def on_tick(self, counter: int) -> bool:
        """Every tenth of a second: whether all is done."""
        if self._until is not None and not self.should_exit:
            now, left = time.monotonic(), self._draining.in_flight + self._models.num_live
            if not left or (self._cut and now > self._until):
                self.should_exit = True
            elif now > self._until and not self._cut:
                observe.log("cut_off", answers=self._models.num_live)
                self._models.cancel()
                self._cut, self._until = True, now + _TELL_SECONDS
        return await super().on_tick(counter)
