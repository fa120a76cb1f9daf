"""Refusals in OpenAI's error envelope."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response
from vllm.exceptions import VLLMValidationError

from heed_interventions.errors import InterventionError

_TYPES = {
    400: "BadRequestError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    413: "RequestTooLargeError",
    503: "ServiceUnavailableError",
}

BUSY_RETRY_SECONDS = 1
"""After which there may be room again."""


class RefusedError(VLLMValidationError):  # type: ignore[misc]
    """A request that Heed refuses.

    Being vLLM's validation error, it is a 400 that names the field also where vLLM's own handlers
    catch it; `install` answers it with its own status elsewhere.
    """

    def __init__(self, message: str, param: str | None, status: int = 400) -> None:
        super().__init__(message, parameter=param)
        self.message = message
        self.status = status

    def __str__(self) -> str:
        return self.message


class TooLargeError(HTTPException):
    """A body that goes on past the limit.

    FastAPI, which answers 400 for whatever else happens while it reads a body, passes this class on.
    """

    def __init__(self, most: int) -> None:
        super().__init__(413, f"the body is larger than {most} bytes, the most this server takes")


def refused(error: InterventionError) -> RefusedError:
    """The refusal of an intervention, as vLLM's handlers understand it."""
    return RefusedError(str(error), error.param, error.status)


def envelope(message: str, param: str | None, status: int) -> dict[str, Any]:
    """OpenAI's error body."""
    return {"error": {"message": message, "type": _TYPES[status], "param": param, "code": status}}


def error_response(message: str, param: str | None = None, status: int = 400) -> JSONResponse:
    """A response with that body and status."""
    return JSONResponse(envelope(message, param, status), status_code=status)


def unavailable(message: str, seconds: int) -> JSONResponse:
    """A 503, for whoever comes again after so many seconds."""
    response = error_response(message, status=503)
    response.headers["Retry-After"] = str(seconds)
    return response


def install(app: FastAPI) -> None:
    """Answer `RefusedError`, and bodies that cannot be parsed, wherever they reach the application."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RefusedError)
        return error_response(error.message, error.parameter, error.status)

    async def answer_unparsable(request: Request, error: Exception) -> Response:
        # FastAPI raises Starlette's class for bodies that it cannot parse (too deep, numbers too
        # long), for which vLLM, which handles FastAPI's, has no handler.
        assert isinstance(error, HTTPException)
        if error.status_code == 400:
            return error_response(f"the body is not usable JSON: {error.detail}")
        return await http_exception_handler(request, error)

    async def answer_too_large(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, TooLargeError)
        return error_response(error.detail, None, error.status_code)

    app.add_exception_handler(RefusedError, answer)
    app.add_exception_handler(TooLargeError, answer_too_large)
    app.add_exception_handler(HTTPException, answer_unparsable)
