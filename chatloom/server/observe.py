"""What is seen of a server from outside: /health, /metrics, a log line for each request, and past requests.

Nothing here ever holds the text of a request or of an answer, nor a key: a path is logged as its route, a caller by
name, an exception by its type and the places it went through.
"""

import asyncio
import contextlib
import json
import logging
import time
import traceback
import uuid
from collections.abc import AsyncGenerator, Iterator
from dataclasses import asdict
from typing import Annotated, Any, TextIO

from fastapi import APIRouter, Query, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatloom.feedback.records import PastRequest
from chatloom.feedback.requests import Requests
from chatloom.server import errors, note
from chatloom.server.errors import APIError
from chatloom.server.generation import Generation
from chatloom.server.guard import Sender
from chatloom.server.note import Note
from chatloom.server.served import ServedModels

router = APIRouter()
logger = logging.getLogger("chatloom.server")
UNKNOWN = "(unknown)"
RECORDED = "/v1/"  # requests that are recorded: those of the API that may cost something
KEPT_SECONDS = 30 * 86_400.0
_WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SPEEDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
WRITE_EVERY_SECONDS = 0.5
STILL_ANSWERED = ("/health", "/metrics")  # by a server that is about to end


# --- metrics --------------------------------------------------------------------------------------------------


class Metrics:
    """Figures for Prometheus, of one app."""

    def __init__(self, models: ServedModels) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "chatloom"}
        self.requests = Counter("requests", "Requests answered.", ("path", "status"), **own)
        self.seconds = Histogram("request_seconds", "From a request to its end.", ("path",), buckets=_WAITS, **own)
        self.in_flight = Gauge("requests_in_flight", "Requests under way.", **own)
        self.answers = Counter("answers", "Answers generated.", ("model", "finish_reason"), **own)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts.", ("model",), **own)
        self.cached_tokens = Counter("cached_tokens", "Tokens of prompts that were remembered.", ("model",), **own)
        self.tokens = Counter("generated_tokens", "Tokens generated.", ("model",), **own)
        self.first = Histogram(
            "first_token_seconds", "From a request to its first token.", ("model",), buckets=_WAITS, **own
        )
        self.speed = Histogram(
            "answer_tokens_per_second", "Tokens a second of an answer.", ("model",), buckets=_SPEEDS, **own
        )
        self.registry.register(_Load(models))
        ProcessCollector(registry=self.registry)

    def note(self, model: str, generation: Generation) -> None:
        """An answer has ended."""
        made = generation.completion
        self.answers.labels(model, "error" if generation.error else made.finish_reason).inc()
        self.prompt_tokens.labels(model).inc(generation.num_prompt)
        self.cached_tokens.labels(model).inc(generation.num_cached)
        self.tokens.labels(model).inc(len(made.tokens))
        first, seconds = generation.first_seconds, generation.seconds
        if made.tokens and first is not None and seconds is not None:
            self.first.labels(model).observe(first)
            self.speed.labels(model).observe(len(made.tokens) / max(seconds, 1e-6))


class _Load(Collector):
    """What the engines have under way, asked when somebody looks."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One family for each figure."""
        families = {
            "num_running": GaugeMetricFamily("chatloom_running", "Answers being computed.", labels=["model"]),
            "num_waiting": GaugeMetricFamily("chatloom_waiting", "Answers that wait for room.", labels=["model"]),
            "blocks_in_use": GaugeMetricFamily("chatloom_kv_blocks_in_use", "Blocks of keys.", labels=["model"]),
            "num_blocks": GaugeMetricFamily("chatloom_kv_blocks", "And how many there may be.", labels=["model"]),
        }
        for served in self._models.values():
            if served.adapter is None:
                load = served.bridge.engine.load
                for name, family in families.items():
                    family.add_metric([served.name], getattr(load, name))
        yield from families.values()


# --- past requests --------------------------------------------------------------------------------------------


class Past:
    """Past requests, written in the background: those who ask do not wait for the disk."""

    def __init__(self, store: Requests) -> None:
        self._store = store
        self._pending: list[PastRequest] = []

    def add(self, request: PastRequest) -> None:
        """Remember one."""
        self._pending.append(request)

    async def flush(self) -> None:
        """Write what is not written."""
        pending, self._pending = self._pending, []
        if pending:
            try:
                await asyncio.to_thread(self._store.log_requests, pending)
            except (ValueError, OSError) as error:  # a full disk must not take the answers with it
                log("requests_not_recorded", level=logging.ERROR, count=len(pending), error=type(error).__name__)

    async def find(self, **which: Any) -> list[PastRequest]:
        """The newest first."""
        await self.flush()
        return await asyncio.to_thread(self._store.requests, **which)

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncGenerator[None, None]:
        """Write every now and then, and at the end."""

        async def write() -> None:
            await asyncio.to_thread(self._store.forget_requests, older_than_seconds=KEPT_SECONDS)
            while True:
                await asyncio.sleep(WRITE_EVERY_SECONDS)
                await self.flush()

        task = asyncio.create_task(write())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ValueError, OSError):
                await task
            await self.flush()


# --- the middleware -------------------------------------------------------------------------------------------


class Draining:
    """Whether a server is about to end, and what it still has to do."""

    def __init__(self) -> None:
        self.begun = False
        self.in_flight = 0


class Observe:
    """Middleware, the outermost: names each request, refuses those that come too late, logs and counts."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, past: Past, draining: Draining) -> None:
        self._app, self._metrics, self._past, self._draining = app, metrics, past, draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        one = Note(f"req_{uuid.uuid4().hex}", method=scope["method"])
        note.begin(one)
        sending = _Sending(send, one)
        self._draining.in_flight += 1
        self._metrics.in_flight.inc()
        try:
            if self._draining.begun and scope["path"] not in STILL_ANSWERED:
                await _too_late().response()(scope, receive, Sender(sending.send, scope["path"]))
            else:
                await self._app(scope, receive, sending.send)
        except asyncio.CancelledError:
            one.error = one.error or "cancelled"
            raise
        except Exception as error:
            one.error = type(error).__name__
            log("error", level=logging.ERROR, id=one.id, error=type(error).__name__, trace=places(error))
            if not sending.started:
                await errors.of(RuntimeError()).response()(scope, receive, Sender(sending.send, scope["path"]))
        finally:
            self._draining.in_flight -= 1
            self._metrics.in_flight.dec()
            self._end(one, scope)

    def _end(self, one: Note, scope: Scope) -> None:
        route, principal = scope.get("route"), scope.get("state", {}).get("principal")
        one.path = getattr(route, "path", UNKNOWN)
        one.caller = "" if principal is None else principal.key.name if principal.key else principal.name
        one.seconds = time.monotonic() - one.started
        self._metrics.requests.labels(one.path, one.status or 499).inc()
        self._metrics.seconds.labels(one.path).observe(one.seconds)
        log_request(one)
        if one.method == "POST" and one.path.startswith(RECORDED):
            fields = {name: value for name, value in asdict(one).items() if name not in ("started", "method")}
            self._past.add(PastRequest(**fields | {"status": one.status or 499}))


def _too_late() -> APIError:
    return APIError(503, "The server is about to end; ask again later.", code="shutting_down", retry_after=5)


class _Sending:
    """Adds the request's name to the answer and sees its status."""

    def __init__(self, send: Send, one: Note) -> None:
        self._send, self._note, self.started = send, one, False

    async def send(self, message: Message) -> None:
        """One part of the answer."""
        if message["type"] == "http.response.start":
            self.started = True
            self._note.status = message["status"]
            waited = round((time.monotonic() - self._note.started) * 1000)
            own = [(b"x-request-id", self._note.id.encode()), (b"openai-processing-ms", str(waited).encode())]
            message = {**message, "headers": [*message.get("headers", []), *own]}
        await self._send(message)


# --- logs -----------------------------------------------------------------------------------------------------


def log(event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """One line; `fields` are numbers and names."""
    logger.log(level, event, extra={"fields": fields})


def log_request(one: Note) -> None:
    """The line of a request that has ended."""
    known = {name: value for name, value in asdict(one).items() if value not in (None, "") and name != "started"}
    fields = {name: round(value, 4) if isinstance(value, float) else value for name, value in known.items()}
    logger.info("request", extra={"fields": fields})


def places(error: BaseException) -> list[str]:
    """Where an exception went through, without its words, which may be somebody's text."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]


class JSONLines(logging.Formatter):
    """A log record as a JSON object on a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, event, and its fields."""
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "event": record.getMessage()}
        if record.name != logger.name:
            line["logger"] = record.name
        if record.exc_info and record.exc_info[1] is not None:
            line |= {"error": type(record.exc_info[1]).__name__, "trace": places(record.exc_info[1])}
        return json.dumps(line | getattr(record, "fields", {}), ensure_ascii=False, default=str)


def log_to(stream: TextIO) -> None:
    """Write the server's log lines there, and uvicorn's warnings."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONLines())
    for name, level in (("chatloom.server", logging.INFO), ("uvicorn", logging.WARNING)):
        own = logging.getLogger(name)
        own.handlers, own.propagate = [handler], False
        own.setLevel(level)


# --- routes ---------------------------------------------------------------------------------------------------


class Health(BaseModel):
    """Whether a server answers: "ok", or "ending" (then with status 503)."""

    status: str


class PastRequests(BaseModel):
    """Past requests, the newest first."""

    data: list[PastRequest]


@router.get("/health", response_model=Health, responses={503: {"model": Health, "description": "It is ending."}})
async def health(request: Request, response: Response) -> Health:
    """Whether the server answers, for those who start and balance servers."""
    ending = request.app.state.draining.begun
    response.status_code = 503 if ending else 200
    return Health(status="ending" if ending else "ok")


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors.only(401, 403)},
)
async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    found: Metrics = request.app.state.metrics
    return Response(generate_latest(found.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/api/requests", responses=errors.only(400, 401, 403))
async def past_requests(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
    model: Annotated[str | None, Query(max_length=512)] = None,
    caller: Annotated[str | None, Query(max_length=512)] = None,
    failed: bool = False,
    since: Annotated[float | None, Query(ge=0, le=1e12)] = None,
) -> PastRequests:
    """What was asked of the API, by whom and with what outcome; for administrators. Never what was said."""
    past: Past = request.app.state.past
    found = await past.find(limit=limit, offset=offset, model=model, caller=caller, failed=failed, since=since)
    return PastRequests(data=list(found))
