"""Reports in the named server-sent events of `/v1/responses` and `/v1/messages`.

Unlike chat and completions, these handlers tell events apart by name, and one of them may not have come
to the engine when its handler returns: its first events are read ahead, so that what the door refuses
is still a plain 4xx.
"""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response

from heed_server.api.answers import prompt_reports, with_body
from heed_server.api.exchange import CURRENT, Exchange, Report

_END = object()
Events = AsyncGenerator[str, None]


@dataclass(frozen=True)
class EventStyle:
    """How a route's stream tells what ran.

    last: name of the event that carries the reports. put: sets them in that event's data, in place.
    failed: data of the event `error` in its place, from a message and the data that it would have had.
    """

    last: str
    put: Callable[[dict[str, Any], list[Report]], None]
    failed: Callable[[str, dict[str, Any]], dict[str, Any]]


async def with_named_reports(response: Response, exchange: Exchange, style: EventStyle) -> Response:
    """The stock handler's response with the exchange's reports; errors pass through unchanged.

    Raises:
        RefusedError: the door has refused the prompt.
    """
    if exchange.refusal is not None:
        raise exchange.refusal
    if isinstance(response, StreamingResponse):
        events = within(exchange, response.body_iterator)
        try:
            early = await until_admitted(events, exchange)
        except BaseException:
            await events.aclose()
            raise
        response.body_iterator = _reported(early, events, exchange, style)
        return response
    if not isinstance(response, JSONResponse) or response.status_code != 200:
        return response
    body = {**json.loads(bytes(response.body)), "interventions": await last_reports(exchange)}
    return with_body(response, body)


async def last_reports(exchange: Exchange) -> list[Report]:
    """Reports of the exchange's last prompt: with built-in tools there is one for each turn.

    Raises:
        RuntimeError: as `assemble`.
    """
    return await prompt_reports(exchange.engine_requests[-1]) if exchange.engine_requests else []


async def within(exchange: Exchange, stream: Any) -> Events:
    """The stream's events, each made while `exchange` is the current one, whoever asks for it."""
    try:
        while True:
            token = CURRENT.set(exchange)
            event: Any
            try:
                event = await anext(stream, _END)
            finally:
                CURRENT.reset(token)
            if event is _END:
                return
            yield event if isinstance(event, str) else bytes(event).decode()
    finally:
        await stream.aclose()


async def until_admitted(events: Events, exchange: Exchange) -> list[str]:
    """The first events, until the door has let the prompt through.

    Raises:
        RefusedError: it has not.
    """
    early: list[str] = []
    while not exchange.engine_requests:
        event = await anext(events, None)
        if exchange.refusal is not None:
            raise exchange.refusal
        if event is None:
            break
        early.append(event)
    return early


async def _reported(
    early: list[str], events: Events, exchange: Exchange, style: EventStyle
) -> Events:
    async with aclosing(events):
        for event in early:
            yield event
        async for event in events:
            if exchange.asked and event.startswith(f"event: {style.last}\n"):
                yield await _last(event, exchange, style)
            else:
                yield event


async def _last(event: str, exchange: Exchange, style: EventStyle) -> str:
    name, data = style.last, json.loads(event.partition("\ndata: ")[2])
    try:
        style.put(data, await last_reports(exchange))
    except Exception as error:
        # The answer is out with status 200: an event is all that can still say so.
        name, data = "error", style.failed(str(error), data)
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n"
