"""What crosses between Ray's processes: requests whole, answers in parts, and the text by which routers compare."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from heed_server.api.errors import TooLargeError
from heed_server.ray_serve.affinity import MOST_CHARACTERS, PARTING_CHARACTERS, affinity
from heed_server.ray_serve.asgi import PARTS_AHEAD, Ask, Head, answered, asked, relayed
from heed_server.ray_serve.metrics import merged

SYSTEM = "You are terse. " * 40
CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "ray" / "heed.yaml"


def text(**fields: Any) -> str:
    return affinity(json.dumps({"model": "m", **fields}).encode())


def shared(one: str, other: str) -> int:
    """Characters that both begin with."""
    return next(
        (i for i, pair in enumerate(zip(one, other, strict=False)) if len(set(pair)) > 1),
        min(len(one), len(other)),
    )


def test_prompts_that_begin_alike_give_texts_that_begin_alike() -> None:
    one, other = text(prompt=SYSTEM + "Why?"), text(prompt=SYSTEM + "How?", max_tokens=7)
    assert shared(one, other) == PARTING_CHARACTERS + len(SYSTEM)
    messages = [[{"role": "user", "content": SYSTEM + word}] for word in ("Why?", "How?")]
    assert shared(*(text(messages=each) for each in messages)) > len(SYSTEM)
    assert shared(text(prompt=[5] * 99), text(prompt=[5] * 98 + [6])) > 98


@pytest.mark.parametrize(
    "fields",
    [
        {"cache_salt": "tenant"},
        {"model": "m@profile"},
        {"interventions": [{"method": "zerotuning", "gamma": 2}]},
        {"interventions": [{"method": "zerotuning", "gamma": 3}]},
    ],
    ids=str,
)
def test_what_has_blocks_of_its_own_begins_otherwise(fields: dict[str, Any]) -> None:
    one, other = text(prompt=SYSTEM), text(prompt=SYSTEM, **fields)
    assert shared(one, other) < PARTING_CHARACTERS
    assert other == text(**fields, prompt=SYSTEM)


def test_the_order_of_names_in_an_edit_parts_nothing() -> None:
    edits = [{"method": "zerotuning", "gamma": 2}, {"gamma": 2, "method": "zerotuning"}]
    assert len({text(prompt=SYSTEM, interventions=[edit]) for edit in edits}) == 1


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"[" * 9999, b'{"prompt": {"a": 1}}'])
def test_any_body_gives_a_text_and_none_is_empty(body: bytes) -> None:
    assert PARTING_CHARACTERS <= len(affinity(body)) <= MOST_CHARACTERS


@pytest.mark.parametrize(
    ("ahead", "prompt"),
    [
        ("system", {"messages": [{"role": "user", "content": "Why?"}]}),
        ("instructions", {"input": "Why?"}),
    ],
)
def test_what_stands_ahead_of_the_prompt_is_compared_first(
    ahead: str, prompt: dict[str, Any]
) -> None:
    one, same, other = (
        text(**prompt, **{ahead: said}) for said in (SYSTEM, SYSTEM, "Rhyme. " * 40)
    )
    assert one == same and shared(one, other) == PARTING_CHARACTERS
    assert one[PARTING_CHARACTERS:].startswith(SYSTEM)


def test_numbers_do_not_run_together() -> None:
    assert text(prompt=[1, 23]) != text(prompt=[12, 3])


@pytest.mark.parametrize("deep", [b"[" * 900 + b"]" * 900, b'{"a":' * 900 + b"1" + b"}" * 900])
def test_a_prompt_that_is_nested_as_deeply_as_json_is_read_gives_a_text(deep: bytes) -> None:
    assert affinity(b'{"prompt": ' + deep + b"}")


def test_a_body_that_is_too_long_to_be_read_is_compared_as_it_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("heed_server.ray_serve.affinity.MOST_BYTES_READ", 100)
    monkeypatch.setattr("json.loads", None)
    one, other = (b'{"prompt": "' + SYSTEM.encode() + word for word in (b"Why?", b"How?"))
    assert shared(affinity(one), affinity(other)) == len(b'{"prompt": "') + len(SYSTEM)
    assert len(affinity(b"a" * 10 * MOST_CHARACTERS)) == MOST_CHARACTERS


def test_a_router_never_has_to_keep_more_than_the_beginning() -> None:
    assert len(text(prompt="a" * 10 * MOST_CHARACTERS)) == MOST_CHARACTERS


def ask(path: str, body: bytes = b"", query: bytes = b"") -> Ask:
    headers = [(b"content-type", b"application/json"), (b"authorization", b"Bearer k")]
    return Ask("POST", path, query, headers, body, affinity(body))


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    app.state.left = asyncio.Event()
    app.state.made = 0

    @app.post("/echo")
    async def echo(request: Request) -> dict[str, Any]:
        body, query = await request.json(), dict(request.query_params)
        return {"body": body, "query": query, "key": request.headers["authorization"]}

    @app.post("/endless")
    async def endless() -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            try:
                while True:
                    app.state.made += 1
                    yield b"data: 1\n\n"
                    await asyncio.sleep(0)
            finally:
                app.state.left.set()

        return StreamingResponse(lines(), media_type="text/event-stream")

    return app


async def everything(app: Any, request: Ask) -> tuple[Head, bytes]:
    head, *parts = [part async for part in answered(app, request)]
    assert isinstance(head, Head)
    return head, b"".join(part for part in parts if isinstance(part, bytes))


def test_a_request_crosses_whole_and_its_answer_comes_back_with_its_head(app: FastAPI) -> None:
    request = pickle.loads(pickle.dumps(ask("/echo", b'{"a": 1}', b"b=2")))  # noqa: S301
    head, body = asyncio.run(everything(app, request))
    assert head.status == 200 and (b"content-type", b"application/json") in head.headers
    assert json.loads(body) == {"body": {"a": 1}, "query": {"b": "2"}, "key": "Bearer k"}
    assert asyncio.run(everything(app, ask("/nowhere")))[0].status == 404


def test_an_application_that_fails_has_answered_before(app: FastAPI) -> None:
    """No content type, so no JSON: Starlette answers 500 and raises."""
    head, _ = asyncio.run(everything(app, ask("/echo", b"no JSON")))
    assert head.status == 500


def test_an_answer_that_breaks_off_does_not_look_whole(app: FastAPI) -> None:
    @app.post("/breaks")
    async def breaks() -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            raise OSError("gone")

        return StreamingResponse(lines(), media_type="text/event-stream")

    found: list[Head | bytes] = []

    async def read() -> None:
        async for part in answered(app, ask("/breaks")):
            found.append(part)

    with pytest.raises(OSError, match="gone"):
        asyncio.run(read())
    head, *parts = found
    assert isinstance(head, Head) and parts == [b"data: 1\n\n"]


class LostError(Exception):
    """A replica that is gone."""


def test_an_answer_is_relayed_with_its_head(app: FastAPI) -> None:
    async def relay() -> Response:
        return await relayed(answered(app, ask("/echo", b'{"a": 1}')), (LostError,))

    response = asyncio.run(relay())
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"


def test_a_replica_that_is_gone_before_it_answers_is_a_503_in_the_envelope() -> None:
    async def none() -> AsyncIterator[Head | bytes]:
        raise LostError("the actor died")
        yield b""

    response = asyncio.run(relayed(none(), (LostError,)))
    assert response.status_code == 503 and int(response.headers["retry-after"]) > 0
    assert json.loads(bytes(response.body))["error"]["type"] == "ServiceUnavailableError"


def test_a_client_that_leaves_ends_the_work(app: FastAPI) -> None:
    async def leave() -> None:
        async with aclosing(answered(app, ask("/endless"))) as parts:
            assert isinstance(await anext(parts), Head)
            assert await anext(parts) == b"data: 1\n\n"
        await asyncio.wait_for(app.state.left.wait(), 10)

    asyncio.run(leave())


def test_an_application_waits_for_a_reader_that_is_slow(app: FastAPI) -> None:
    async def wait() -> None:
        async with aclosing(answered(app, ask("/endless"))) as parts:
            await anext(parts)
            for _ in range(1000):
                await asyncio.sleep(0)
            assert app.state.made <= PARTS_AHEAD + 3

    asyncio.run(wait())


def test_what_the_front_takes_is_what_was_sent(app: FastAPI) -> None:
    """Through an application of Starlette's, as Serve calls the front."""
    seen: list[Ask] = []

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await asked(Request(scope, receive), 1000))

    request = ask("/v1/completions", b'{"prompt": "Once"}', b"x=1")

    async def cross() -> None:
        async for _ in answered(front, request):
            raise AssertionError("it answers nothing")

    asyncio.run(cross())
    assert seen == [request]


def test_the_front_holds_no_body_above_the_limit() -> None:
    async def cross() -> None:
        messages = iter([{"type": "http.request", "body": b"a" * 600, "more_body": True}] * 9)

        async def receive() -> Any:
            return next(messages)

        request = Request({"type": "http", "method": "POST", "headers": []}, receive)
        with pytest.raises(TooLargeError):
            await asked(request, 1000)
        assert len(list(messages)) == 7

    asyncio.run(cross())


def test_the_metrics_of_replicas_stand_beside_each_other() -> None:
    page = (
        "# HELP heed_requests_total Requests.\n# TYPE heed_requests_total counter\n"
        'heed_requests_total{{method="act"}} {0}\n'
        "# HELP wait_seconds Wait.\n# TYPE wait_seconds histogram\n"
        'wait_seconds_bucket{{le="1.0"}} {0}\nwait_seconds_bucket{{le="+Inf"}} {0}\n'
        "wait_seconds_count {0}\nwait_seconds_sum 0.5\n"
    )
    found = merged([("a", page.format(1.0)), ("b", page.format(2.0))]).decode()
    for replica, value in (("a", "1.0"), ("b", "2.0")):
        assert f'heed_requests_total{{method="act",replica="{replica}"}} {value}\n' in found
        assert f'wait_seconds_bucket{{le="+Inf",replica="{replica}"}} {value}\n' in found
    assert found.count("# TYPE heed_requests_total counter") == 1
    assert found.count("# TYPE") == 2


def test_the_config_names_what_is_there() -> None:
    (application,) = yaml.safe_load(CONFIG.read_text())["applications"]
    module, _, function = application["import_path"].partition(":")
    source = (CONFIG.parents[2] / "server" / Path(*module.split("."))).with_suffix(".py")
    assert f"def {function}(" in source.read_text()
    names = [deployment["name"] for deployment in application["deployments"]]
    assert all(f"class {name}:" in source.read_text() for name in names)
    assert list(application["args"]) == ["arguments"]
