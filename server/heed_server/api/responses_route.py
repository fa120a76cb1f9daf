"""`POST /v1/responses` with interventions.

The report is `interventions` beside the response's other fields; in a stream it stands in the response of
the event `response.completed`.
"""

from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response
from vllm.entrypoints.openai.responses import api_router as responses_api
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

from heed_server.api.event_streams import EventStyle, with_named_reports
from heed_server.api.exchange import Report
from heed_server.api.requests import HeedResponsesRequest
from heed_server.api.routes import ERRORS, generate

router = APIRouter()


@router.post(
    "/v1/responses",
    dependencies=[Depends(validate_json_request)],
    responses={200: {"content": {"text/event-stream": {}}}, **ERRORS},
)
async def create_response(request: HeedResponsesRequest, raw_request: Request) -> Response:
    """vLLM's responses, with interventions."""
    return await generate(
        responses_api.create_responses,
        request,
        raw_request,
        lambda response, exchange: with_named_reports(response, exchange, STYLE),
    )


def _put(data: dict[str, Any], reports: list[Report]) -> None:
    data["response"]["interventions"] = reports


def _failed(message: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "error",
        "code": "500",
        "message": message,
        "param": None,
        "sequence_number": data["sequence_number"],
    }


STYLE = EventStyle("response.completed", _put, _failed)
