"""Refusals in OpenAI's error envelope."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from vllm.exceptions import VLLMValidationError

from heed_interventions.errors import InterventionError

_TYPES = {400: "BadRequestError", 403: "PermissionDeniedError", 404: "NotFoundError"}


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


def refused(error: InterventionError) -> RefusedError:
    """The refusal of an intervention, as vLLM's handlers understand it."""
    return RefusedError(str(error), error.param, error.status)


def envelope(message: str, param: str | None, status: int) -> dict[str, Any]:
    """OpenAI's error body."""
    return {"error": {"message": message, "type": _TYPES[status], "param": param, "code": status}}


def error_response(message: str, param: str | None = None, status: int = 400) -> JSONResponse:
    """A response with that body and status."""
    return JSONResponse(envelope(message, param, status), status_code=status)


def install(app: FastAPI) -> None:
    """Answer `RefusedError` wherever it reaches the application."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RefusedError)
        return error_response(error.message, error.parameter, error.status)

    app.add_exception_handler(RefusedError, answer)
