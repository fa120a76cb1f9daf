"""`POST /v1/attention`."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.responses import Response
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import validate_json_request, with_cancellation

from heed_interventions.errors import join_path
from heed_interventions.parse import is_mark
from heed_server.api.errors import error_response
from heed_server.api.routes import ERRORS
from heed_server.attention.answer import archive
from heed_server.attention.body import AttentionAnswer, AttentionBody
from heed_server.attention.service import Diagnostics

NPZ = "application/x-npz"


class NamingRoute(APIRoute):
    """Bodies that do not fit are refused with the field's name, which vLLM's own handler leaves out."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As in `APIRoute`."""
        stock = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await stock(request)
            except (RequestValidationError, ValidationError) as error:
                return refusal(error.errors()[0])

        return handler


def refusal(detail: Any) -> JSONResponse:
    """The 400 of one of pydantic's errors."""
    location = [part for part in detail["loc"] if part != "body" and not is_mark(part)]
    path = join_path(*location)
    message = detail["msg"].removeprefix("Value error, ")
    return error_response(f"{path}: {message}" if path else message, path or None)


router = APIRouter(route_class=NamingRoute)


@router.post(
    "/v1/attention",
    dependencies=[Depends(validate_json_request)],
    responses={
        200: {"model": AttentionAnswer, "content": {NPZ: {"schema": {"format": "binary"}}}},
        **ERRORS,
    },
)
async def create_attention(body: AttentionBody, raw_request: Request) -> Response:
    """What a prompt's attention looks like, with or without interventions."""
    if "encoding" not in body.model_fields_set and raw_request.headers.get("accept") == NPZ:
        body = body.model_copy(update={"encoding": "npz"})
    answer = await _answer(body, raw_request)
    # Nobody is there to read it when the client has left.
    return Response(status_code=499) if answer is None else answer


@with_cancellation  # type: ignore[untyped-decorator]
async def _answer(body: AttentionBody, raw_request: Request) -> Response:
    state = raw_request.app.state
    diagnostics: Diagnostics = state.heed_diagnostics
    answer = await diagnostics.answer(body, state)
    if isinstance(answer, ErrorResponse):
        return JSONResponse(answer.model_dump(), status_code=answer.error.code)
    if body.encoding == "npz":
        return Response(await asyncio.to_thread(archive, answer), media_type=NPZ)
    return JSONResponse(answer)
