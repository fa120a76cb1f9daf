import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse
from starlette.background import BackgroundTask
from starlette.responses import Response

from heed_interventions.method import CacheClass
from heed_interventions.resolve import Resolution
from heed_server.api.answers import with_reports
from heed_server.api.exchange import EngineRequest, Exchange

CHUNK = {"id": "c1", "object": "text_completion", "created": 5, "model": "m"}
USAGE = CHUNK | {"choices": [], "usage": {"total_tokens": 3}}
ERROR = {"error": {"message": "boom", "code": 500}}


def exchange(prompts: int = 1, *, asked: bool = True) -> Exchange:
    made = Exchange((), "request", asked=asked)
    for number in range(prompts):
        resolution = Resolution(
            edits=(),
            cache=CacheClass.SHARED,
            digest=None,
            publication_limit=None,
            reports=({"method": "zerotuning", "prompt": number},),
            heads=(None,),
        )
        request = EngineRequest(resolution, prompt_length=4)
        request.completion_tokens = {0: 2, 1: 3}
        made.engine_requests.append(request)
    return made


def answered(response: Response, made: Exchange) -> Response:
    return asyncio.run(with_reports(response, made))


def streamed(events: Sequence[dict[str, Any] | str], made: Exchange) -> list[Any]:
    async def body() -> AsyncIterator[str]:
        for event in events:
            yield f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n"

    async def collect() -> list[Any]:
        response = await with_reports(StreamingResponse(body()), made)
        assert isinstance(response, StreamingResponse)
        lines = [
            str(event).removeprefix("data: ").strip() async for event in response.body_iterator
        ]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    return asyncio.run(collect())


def body_of(response: Response) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(bytes(response.body))
    return parsed


def test_a_single_choice_has_its_reports_at_the_top_only() -> None:
    body = body_of(answered(JSONResponse({"choices": [{"index": 0}]}), exchange()))
    assert [report["method"] for report in body["interventions"]] == ["zerotuning"]
    assert "interventions" not in body["choices"][0]


def test_choices_of_several_prompts_carry_the_reports_of_their_own_prompt() -> None:
    choices = [{"index": index} for index in range(4)]
    body = body_of(answered(JSONResponse({"choices": choices}), exchange(prompts=2)))
    prompts = [choice["interventions"][0]["prompt"] for choice in body["choices"]]
    assert prompts == [0, 0, 1, 1]
    assert body["interventions"] == body["choices"][0]["interventions"]


def test_an_error_response_passes_through_unchanged() -> None:
    response = JSONResponse(ERROR, status_code=500)
    assert answered(response, exchange()) is response


def test_a_stream_gets_one_extra_chunk_right_before_done() -> None:
    events = streamed([CHUNK | {"choices": [{"index": 0}]}, "[DONE]"], exchange())
    assert events[-1] == "[DONE]"
    assert events[-2] == CHUNK | {"choices": [], "interventions": events[-2]["interventions"]}
    assert len(events) == 3


def test_with_include_usage_the_reports_ride_in_the_usage_chunk() -> None:
    events = streamed([CHUNK | {"choices": [{"index": 0}]}, USAGE, "[DONE]"], exchange())
    assert len(events) == 3
    assert events[1]["usage"] == USAGE["usage"] and events[1]["interventions"]


def test_after_an_error_a_stream_carries_no_reports() -> None:
    events = streamed([CHUNK | {"choices": [{"index": 0}]}, ERROR, "[DONE]"], exchange())
    assert all("interventions" not in event for event in events if isinstance(event, dict))


def test_a_stream_whose_client_sent_nothing_is_left_alone() -> None:
    events = streamed([CHUNK | {"choices": []}, "[DONE]"], exchange(asked=False))
    assert len(events) == 2


def test_reports_that_cannot_be_had_end_a_stream_in_an_error_and_not_in_silence() -> None:
    made = exchange()

    async def broken() -> dict[int, dict[str, Any]]:
        raise RuntimeError("the engine is gone")

    async def collect() -> list[str]:
        made.engine_requests[0].ran = asyncio.ensure_future(broken())

        async def body() -> AsyncIterator[str]:
            yield f"data: {json.dumps(CHUNK | {'choices': [{'index': 0}]})}\n\n"
            yield "data: [DONE]\n\n"

        response = await with_reports(StreamingResponse(body()), made)
        assert isinstance(response, StreamingResponse)
        return [str(event) async for event in response.body_iterator]

    events = asyncio.run(collect())
    assert "the engine is gone" in events[1] and '"error"' in events[1]
    assert events[2].strip() == "data: [DONE]"


def test_the_background_task_by_which_vllm_counts_its_load_stays_on_the_response() -> None:
    task = BackgroundTask(lambda: None)
    response = JSONResponse({"choices": [{"index": 0}]}, background=task)
    assert answered(response, exchange()).background is task


def test_a_lost_report_is_not_dressed_up_as_a_measured_one() -> None:
    made = exchange()

    async def lost() -> Response:
        made.engine_requests[0].ran = asyncio.get_running_loop().create_future()
        made.engine_requests[0].ran.set_result({})
        return await with_reports(JSONResponse({"choices": [{"index": 0}]}), made)

    body = body_of(asyncio.run(lost()))
    assert "lost" in body["interventions"][0]["reason"]
