"""Errors as OpenAI gives them: `{"error": {"message", "type", "param", "code"}}`, and the status that goes with them.

Whatever goes wrong below, a ValueError with a sentence for the user, becomes one of these; what nobody foresaw is a
500 that tells the request's id and nothing else. Text that UTF-8 cannot hold is replaced, not raised again.
"""

import errno
import logging
import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from chatloom.engine.request import Overloaded
from chatloom.engine.runner import NotFinite
from chatloom.server import note

RETRY_SECONDS = 1
_log = logging.getLogger("chatloom.server")
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
# What the store's OSErrors say, without the place that they name: status, code and words.
_STORE = {
    errno.ENOSPC: (
        507,
        "disk_full",
        "The server's database could not be written, and nothing of this was stored: its disk may be full. Ask whoever "
        "runs the server to free some space.",
    ),
    errno.EBUSY: (503, "database_busy", "Another program keeps the server's database busy; try again a little later."),
    errno.EACCES: (
        507,
        "database_read_only",
        "The server's database cannot be opened for writing, and nothing of this was stored. Ask whoever runs the "
        "server to check who owns its file.",
    ),
    errno.ECONNREFUSED: (503, "database_unreachable", "The server's database cannot be reached; try again later."),
}
_PARTS = re.compile(r"^(body|query|path|header)$")


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


class APIError(Exception):
    """An error with its place in OpenAI's vocabulary; raised anywhere under a route."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        type: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.type = type or _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """As JSON; without what UTF-8 cannot hold."""
        found = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": {name: _sound(value) for name, value in found.items()}}

    def told(self) -> dict[str, Any]:
        """The body, for the client and, by its code, for the log."""
        if (one := note.current()) is not None:
            one.error = self.code or self.type
        return self.body

    def response(self) -> JSONResponse:
        """As an answer."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(self.retry_after)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.told(), status_code=self.status, headers=headers)


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> APIError:
    """A request that cannot be met as it is."""
    return APIError(400, message, param=param, code=code)


def no_such_model(name: str, known: Sequence[str]) -> APIError:
    """A model that is not served."""
    return APIError(
        404,
        f"The model '{name[:200]}' does not exist; this server has {', '.join(known)}",
        code="model_not_found",
        param="model",
        type="invalid_request_error",
    )


def context_exceeded(context: int, prompt: int | str, *, param: str = "messages") -> APIError:
    """A prompt that leaves no room for an answer; `prompt` is its number of tokens, or words that bound it."""
    return invalid(
        f"This model's maximum context length is {context} tokens. However, your {param} resulted in {prompt} tokens, "
        f"which leaves no room for an answer. Please reduce the length of the {param}.",
        param=param,
        code="context_length_exceeded",
    )


def of(error: Exception) -> APIError:
    """Any exception as an APIError."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, Overloaded):
        return APIError(503, str(error), code="overloaded", retry_after=RETRY_SECONDS)
    if isinstance(error, NotFinite):
        return APIError(500, str(error), code="model_damaged")
    if isinstance(error, ValueError):
        return invalid(str(error))
    if isinstance(error, OSError) and error.errno in _STORE:
        status, code, message = _STORE[error.errno]
        return APIError(status, message, code=code, retry_after=RETRY_SECONDS if status == 503 else None)
    return APIError(500, "The server had an error while processing your request; its log has this request's id.")


def install(app: FastAPI) -> None:
    """Let every error of an app leave as OpenAI's."""

    async def on_error(request: Request, error: Exception) -> JSONResponse:
        return of(error).response()

    async def on_system(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, OSError)
        if error.errno not in _STORE:
            raise error  # nobody foresaw it
        _log.error("%s", error)  # with its place, which the operator wants to know and others need not
        return of(error).response()

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = str(error.detail)
        if error.status_code == 404:
            message = f"Unknown request URL: {request.method} {request.url.path}."
        if error.status_code == 405:
            message = f"Not allowed to {request.method} on {request.url.path}."
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
        answer = APIError(error.status_code, message, code=code, type="invalid_request_error").response()
        answer.headers.update(error.headers or {})
        return answer

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return of_validation(error.errors()).response()

    app.add_exception_handler(APIError, on_error)
    app.add_exception_handler(ValueError, on_error)
    app.add_exception_handler(Overloaded, on_error)
    app.add_exception_handler(OSError, on_system)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_error)


def of_validation(problems: Sequence[Any]) -> APIError:
    """What pydantic found, as OpenAI says it: the first of it, and of a choice the case that came the farthest."""
    first = max(
        (each for each in problems if each["loc"][:2] == problems[0]["loc"][:2]), key=lambda each: len(each["loc"])
    )
    kind = str(first["type"])
    place = [str(part) for part in first["loc"] if not _PARTS.match(str(part))]
    if kind == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return invalid(f"We could not parse the JSON body of your request: {reason}")
    param = _dotted(place) or None
    if kind == "extra_forbidden":
        return invalid(f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
    if kind == "missing":
        what = f"Missing required parameter: '{param}'." if param else "The request has no body; send a JSON object."
        return invalid(what, param=param, code="missing_required_parameter")
    code = "invalid_type" if kind.endswith(("_type", "_parsing")) else "invalid_value"
    message = str(first["msg"]).removeprefix("Value error, ")
    if param is None and kind.startswith("model_attributes"):
        return invalid("The body of the request must be a JSON object, sent with Content-Type: application/json.")
    return invalid(f"Invalid '{param}': {message}" if param else message, param=param, code=code)


def _dotted(place: Sequence[str]) -> str:
    """`messages[0].content` of what pydantic calls ("messages", 0, "content", "str")."""
    text = ""
    for part in place:
        if part.isdigit():
            text += f"[{part}]"
        elif re.fullmatch(r"[a-z_][a-z0-9_]*", part) and part not in ("str", "int", "float", "bool"):
            text += f".{part}" if text else part
    return text


def _sound(value: str | None) -> str | None:
    return None if value is None else value.encode("utf-8", "replace").decode()


# What every route may answer besides, for the OpenAPI document.
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in {
        400: "The request cannot be met as it is.",
        401: "No key, or one that is not known.",
        403: "Not for this key, or not from there.",
        404: "There is no such model.",
        413: "The body is too large.",
        429: "Too many requests of this key.",
        500: "An error of the server's own.",
        503: "No room at the moment; the header Retry-After says when to ask again.",
    }.items()
}


# And where it may stream.
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "The answer."},
    **RESPONSES,
}


def only(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Of `RESPONSES` those that a route may answer."""
    return {status: RESPONSES[status] for status in statuses}
