"""Heed's routes: chat and completions with interventions, the catalogue, and validation without generating."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.responses import Response
from vllm.entrypoints.openai.chat_completion import api_router as chat_api
from vllm.entrypoints.openai.completion import api_router as completion_api
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

from heed_interventions.registry import METHODS, catalogue, catalogue_entry
from heed_interventions.resolve import heads_by_layer
from heed_server.api.answers import with_reports
from heed_server.api.context_length import context_length
from heed_server.api.door import Door
from heed_server.api.errors import RefusedError, error_response
from heed_server.api.exchange import CURRENT, EngineRequest, Exchange, RehearsalOver
from heed_server.api.reports import assemble
from heed_server.api.requests import (
    HeedChatRequest,
    HeedCompletionRequest,
    HeedRequest,
    exchange_of,
)

Handler = Callable[..., Coroutine[Any, Any, Response]]

router = APIRouter()
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 403, 404, 500)
}


def door_of(request: Request) -> Door:
    """The door that `HeedEndpointPlugin.init_state` made for this application."""
    door: Door = request.app.state.heed_door
    return door


@router.post(
    "/v1/chat/completions",
    dependencies=[Depends(validate_json_request)],
    responses={200: {"content": {"text/event-stream": {}}}, **ERRORS},
)
async def create_chat_completion(request: HeedChatRequest, raw_request: Request) -> Response:
    """vLLM's chat completions, with interventions."""
    return await generate(chat_api.create_chat_completion, request, raw_request)


@router.post(
    "/v1/completions",
    dependencies=[Depends(validate_json_request)],
    responses={200: {"content": {"text/event-stream": {}}}, **ERRORS},
)
async def create_completion(request: HeedCompletionRequest, raw_request: Request) -> Response:
    """vLLM's completions, with interventions."""
    return await generate(completion_api.create_completion, request, raw_request)


async def generate(
    stock: Handler,
    request: HeedRequest,
    raw_request: Request,
    reported: Callable[[Response, Exchange], Coroutine[Any, Any, Response]] = with_reports,
) -> Response:
    """What vLLM's handler `stock` answers while the request's interventions are the current ones.

    reported: puts the reports into a response that has some.

    Raises:
        RefusedError: the interventions cannot be used.
    """
    door = door_of(raw_request)
    serving = raw_request.app.state.openai_serving_models
    exchange = exchange_of(request, door.profiles, serving.is_base_model, door.metrics)
    if exchange is None:
        return await stock(request, raw_request)
    return await reported(await _handled(stock, request, raw_request, exchange), exchange)


async def _handled(
    stock: Handler,
    request: HeedRequest,
    raw_request: Request,
    exchange: Exchange,
) -> Response:
    """What vLLM's own handler answers, with the engine's door told of the exchange."""
    token = CURRENT.set(exchange)
    try:
        with context_length(door_of(raw_request).length_for(exchange)):
            return await stock(request, raw_request)
    finally:
        CURRENT.reset(token)


@router.get("/v1/interventions")
async def list_interventions(raw_request: Request) -> JSONResponse:
    """Every method, with its JSON Schema and whether the served model can have it."""
    door = door_of(raw_request)
    model = door.model
    entries = [door.settings.policy.narrowed(entry) for entry in catalogue(model)]
    shape = {
        "layers": model.layers,
        "query_heads": model.query_heads,
        "kv_heads": model.kv_heads,
        "images": model.vision,
    }
    return JSONResponse({"object": "list", "model": shape, "data": entries})


@router.get("/v1/interventions/{method}", responses={404: {"model": ErrorResponse}})
async def get_intervention(method: str, raw_request: Request) -> JSONResponse:
    """One method of the catalogue."""
    if method not in METHODS:
        known = ", ".join(sorted(METHODS))
        return error_response(f"unknown method {method[:80]!r}; there are: {known}", "method", 404)
    door = door_of(raw_request)
    entry = catalogue_entry(METHODS[method], door.model)
    return JSONResponse(door.settings.policy.narrowed(entry))


@router.post(
    "/v1/interventions/validate",
    dependencies=[Depends(validate_json_request)],
    responses=ERRORS,
)
async def validate_interventions(raw_request: Request) -> Response:
    """What a chat or completion request would do: the reports without rows, or the error.

    It goes the way of the request up to the engine's door; nothing is generated and nothing counted.
    """
    body = await _json_object(raw_request)
    request: HeedChatRequest | HeedCompletionRequest
    stock: Handler
    try:
        if "messages" in body:
            stock, request = chat_api.create_chat_completion, HeedChatRequest.model_validate(body)
        else:
            stock = completion_api.create_completion
            request = HeedCompletionRequest.model_validate(body)
    except ValidationError as error:
        # As FastAPI reports a body that does not fit, so that vLLM's handler words it.
        raise RequestValidationError(error.errors()) from error
    door = door_of(raw_request)
    served = raw_request.app.state.openai_serving_models
    exchange = exchange_of(request, door.profiles, served.is_base_model, None)
    exchange = exchange or Exchange((), "request", asked=False)
    exchange.rehearsal = True
    try:
        response = await _handled(stock, request, raw_request, exchange)
    except RehearsalOver:
        pass
    else:
        # A stream that nobody has read yet has got as far.
        if not isinstance(response, StreamingResponse):
            return response
    results = [_foretold(prompt) for prompt in exchange.engine_requests]
    return JSONResponse(
        {
            "object": "interventions.validation",
            "interventions": results[0]["interventions"],
            "prompts": results,
        }
    )


def _foretold(prompt: EngineRequest) -> dict[str, Any]:
    resolution = prompt.resolution
    reports = assemble(prompt, 0, {})
    return {
        "prompt_tokens": prompt.prompt_length,
        "cache": resolution.cache,
        "plain": not resolution.edits,
        "interventions": [
            report | {"layers": [int(layer) for layer in heads], "heads": heads}
            for report, heads in zip(reports, map(heads_by_layer, resolution.heads), strict=True)
        ],
    }


async def _json_object(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"the body is not usable JSON: {error}", None) from error
    if not isinstance(body, dict):
        raise RefusedError("the body must be a JSON object", None)
    return body
