"""Reports in named events, with stand-ins for vLLM's handlers and for the door."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response

from heed_interventions.method import CacheClass
from heed_interventions.resolve import Resolution
from heed_server.api import messages_route, responses_route
from heed_server.api.errors import RefusedError
from heed_server.api.event_streams import EventStyle, with_named_reports
from heed_server.api.exchange import CURRENT, EngineRequest, Exchange

REPORT = {"method": "zerotuning"}
STYLES = pytest.mark.parametrize(
    "style", [messages_route.STYLE, responses_route.STYLE], ids=["messages", "responses"]
)


def engine_request() -> EngineRequest:
    resolution = Resolution((), CacheClass.SHARED, None, None, (REPORT,), (None,))
    return EngineRequest(resolution, prompt_length=4)


def event(name: str, **data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n"


def last(style: EventStyle) -> str:
    return event(style.last, response={"id": "r"}, sequence_number=7)


def streamed(stream: AsyncIterator[Any], exchange: Exchange, style: EventStyle) -> list[str]:
    async def collect() -> list[str]:
        response = await with_named_reports(StreamingResponse(stream), exchange, style)
        assert isinstance(response, StreamingResponse)
        return [str(each) async for each in response.body_iterator]

    return asyncio.run(collect())


def data_of(text: str) -> Any:
    return json.loads(text.partition("\ndata: ")[2])


@STYLES
def test_the_last_event_carries_the_reports(style: EventStyle) -> None:
    exchange = Exchange((), "request", asked=True)

    async def stock() -> AsyncIterator[str]:
        yield event("begin")
        # As in `/v1/responses`: the engine is asked while the stream is read.
        current = CURRENT.get()
        assert current is not None
        current.engine_requests.append(engine_request())
        yield event("token")
        yield last(style)

    begin, token, end = streamed(stock(), exchange, style)
    assert (begin, token) == (event("begin"), event("token"))
    data = data_of(end)
    (report,) = data.get("interventions") or data["response"]["interventions"]
    assert report["method"] == "zerotuning"
    assert CURRENT.get() is None


@STYLES
def test_a_stream_that_asked_for_nothing_is_left_as_it_is(style: EventStyle) -> None:
    exchange = Exchange((), "default", asked=False, engine_requests=[engine_request()])

    async def stock() -> AsyncIterator[str]:
        yield last(style)

    assert streamed(stock(), exchange, style) == [last(style)]


@STYLES
@pytest.mark.parametrize("as_event", [False, True], ids=["raised", "told in an event"])
def test_what_the_door_refuses_comes_before_the_first_event(
    style: EventStyle, as_event: bool
) -> None:
    exchange = Exchange((), "request", asked=True)

    async def stock() -> AsyncIterator[str]:
        yield event("begin")
        exchange.refusal = RefusedError("no", "interventions.0.spans")
        if not as_event:
            raise exchange.refusal
        yield event("error")

    with pytest.raises(RefusedError, match="no"):
        streamed(stock(), exchange, style)


@STYLES
def test_reports_that_cannot_be_had_are_an_error_event(style: EventStyle) -> None:
    exchange = Exchange((), "request", asked=True, engine_requests=[engine_request()])

    async def stock() -> AsyncIterator[str]:
        failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        failed.set_exception(RuntimeError("a worker failed"))
        exchange.engine_requests[0].ran = failed
        yield last(style)

    (told,) = streamed(stock(), exchange, style)
    assert told.startswith("event: error\n") and "a worker failed" in told


def test_a_whole_answer_carries_the_reports_of_its_last_turn() -> None:
    first, second = engine_request(), engine_request()
    second.resolution = Resolution((), CacheClass.SHARED, None, None, ({"turn": 2},), (None,))
    exchange = Exchange((), "request", asked=True, engine_requests=[first, second])

    def answered(response: Response) -> Response:
        return asyncio.run(with_named_reports(response, exchange, responses_route.STYLE))

    made = json.loads(bytes(answered(JSONResponse({"id": "r"})).body))
    assert made["id"] == "r" and [report["turn"] for report in made["interventions"]] == [2]
    error = JSONResponse({"error": {}}, status_code=404)
    assert answered(error) is error
