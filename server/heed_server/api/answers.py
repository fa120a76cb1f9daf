"""Reports put into vLLM's own responses, after its handlers have made them."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

from heed_server.api.exchange import EngineRequest, Exchange, Report
from heed_server.api.reports import assemble

_DATA = "data: "
_DONE = "[DONE]"


async def with_reports(response: Response, exchange: Exchange) -> Response:
    """The stock handler's response with the exchange's reports; errors pass through unchanged."""
    if isinstance(response, StreamingResponse):
        if exchange.asked:
            response.body_iterator = _stream_with_reports(response.body_iterator, exchange)
        return response
    if not isinstance(response, JSONResponse) or response.status_code != 200:
        return response
    body: dict[str, Any] = json.loads(bytes(response.body))
    choices = body["choices"]
    body["interventions"] = await first_reports(exchange)
    if len(choices) > 1:
        for choice in choices:
            choice["interventions"] = await choice_reports(exchange, choice["index"], len(choices))
    return with_body(response, body)


def with_body(response: JSONResponse, body: Mapping[str, Any]) -> JSONResponse:
    """The response with another body."""
    # Headers carry vLLM's load metrics; the length is that of the new body.
    headers = {k: v for k, v in response.headers.items() if k.lower() != "content-length"}
    # The background task is how vLLM keeps count of its load.
    return JSONResponse(body, headers=headers, background=response.background)


async def first_reports(exchange: Exchange) -> list[Report]:
    """Reports of the first choice.

    Raises:
        RuntimeError: as `assemble`.
    """
    return await prompt_reports(exchange.engine_requests[0]) if exchange.engine_requests else []


async def choice_reports(exchange: Exchange, index: int, choices: int) -> list[Report]:
    """Reports of choice `index` out of `choices`: those of its prompt, and what ran for it.

    Raises:
        RuntimeError: as `assemble`.
    """
    if not exchange.engine_requests:
        return []
    per_prompt = max(1, choices // max(1, len(exchange.engine_requests)))
    return await prompt_reports(exchange.engine_requests[index // per_prompt], index % per_prompt)


async def prompt_reports(request: EngineRequest, choice: int = 0) -> list[Report]:
    """Reports of one choice of one prompt.

    Raises:
        RuntimeError: as `assemble`.
    """
    return assemble(request, choice, await request.ran if request.ran is not None else {})


async def _stream_with_reports(stream: Any, exchange: Exchange) -> AsyncIterator[Any]:
    """The stock event stream; the reports ride in the usage chunk, or in one more before [DONE]."""
    like = ""
    reported = failed = False
    try:
        async for event in stream:
            text = event if isinstance(event, str) else bytes(event).decode()
            data = text.removeprefix(_DATA).strip() if text.startswith(_DATA) else ""
            if data == _DONE and like and not reported and not failed:
                yield await _reported(_chunk_like(json.loads(like)), exchange)
            elif data.startswith("{"):
                like = like or data
                failed = failed or _is_error(data)
                if not failed and (usage := _usage_chunk(data)) is not None:
                    reported = True
                    yield await _reported(usage, exchange)
                    continue
            yield event
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


async def _reported(chunk: Mapping[str, Any], exchange: Exchange) -> str:
    """The chunk with the reports of choice 0; an error event where they cannot be had."""
    try:
        reports = await first_reports(exchange)
    except Exception as error:
        # The answer is out with status 200: this is how vLLM says that something failed later.
        return _event(create_error_response(error).model_dump())
    return _event({**chunk, "interventions": reports})


def _is_error(data: str) -> bool:
    # Only events that may be errors are parsed: most are tokens, one each.
    return '"error"' in data and "error" in json.loads(data)


def _usage_chunk(data: str) -> dict[str, Any] | None:
    if '"usage"' not in data:
        return None
    chunk: dict[str, Any] = json.loads(data)
    return chunk if chunk.get("choices") == [] and chunk.get("usage") else None


def _chunk_like(chunk: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("id", "object", "created", "model")
    return {key: chunk[key] for key in kept if key in chunk} | {"choices": []}


def _event(body: Mapping[str, Any]) -> str:
    return f"{_DATA}{json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
