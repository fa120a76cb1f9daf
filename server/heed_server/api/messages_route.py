"""`POST /v1/messages`, Anthropic's API, with interventions.

The report is `interventions` beside the message's other fields; in a stream it stands in the event
`message_delta`, beside the usage. Refusals have Anthropic's envelope, with `param` and `code` in it.
"""

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response
from vllm.entrypoints.anthropic import api_router as messages_api
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

from heed_server.api.errors import RefusedError, envelope
from heed_server.api.event_streams import EventStyle, with_named_reports
from heed_server.api.exchange import Report
from heed_server.api.requests import HeedMessagesRequest
from heed_server.api.routes import ERRORS, generate

router = APIRouter()


@router.post(
    "/v1/messages",
    dependencies=[Depends(validate_json_request)],
    responses={200: {"content": {"text/event-stream": {}}}, **ERRORS},
)
async def create_message(request: HeedMessagesRequest, raw_request: Request) -> Response:
    """vLLM's messages, with interventions."""
    try:
        return await generate(
            messages_api.create_messages,
            request,
            raw_request,
            lambda response, exchange: with_named_reports(response, exchange, STYLE),
        )
    except RefusedError as error:
        body = {"type": "error", **envelope(error.message, error.parameter, error.status)}
        return JSONResponse(body, status_code=error.status)


def _put(data: dict[str, Any], reports: list[Report]) -> None:
    data["interventions"] = reports


def _failed(message: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"type": "error", "error": {"type": "InternalServerError", "message": message}}


STYLE = EventStyle("message_delta", _put, _failed)
