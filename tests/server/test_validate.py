"""`POST /v1/interventions/validate` beside the request itself, on an application without an engine."""

from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, generate_latest
from tests.server.door_maker import MODEL, door
from vllm.utils.async_utils import merge_async_iterators

from heed_server.api import errors, routes
from heed_server.api.cache_room import CacheRoom
from heed_server.settings import Settings

VALIDATE = "/v1/interventions/validate"
SMALL = CacheRoom(14, 32)
WINDOW: dict[str, Any] = {"method": "streaming_llm", "sinks": 4, "window": 400}
EMPHASIS: dict[str, Any] = {
    "method": "emphasis", "spans": [{"start": 5, "end": 9}], "layers": [1], "heads": [0, 3],
}  # fmt: skip


class Engine:
    """`generate` is replaced by the door; what gets past it is counted."""

    reached = 0

    renderer = SimpleNamespace(mm_processor_cache=None)

    def generate(self, prompt: Any, params: Any, request_id: str, **rest: Any) -> Any:
        Engine.reached += 1
        return merge_async_iterators()


class Completions:
    """Stands between a body and the engine as vLLM's handler does."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    async def create_completion(self, request: Any, raw_request: Any) -> Any:
        prompts = request.prompt if isinstance(request.prompt[0], list) else [request.prompt]
        answers = [
            self.engine.generate(
                {"prompt_token_ids": tokens, "cache_salt": request.cache_salt},
                request.to_sampling_params(request.max_tokens, {}),
                str(number),
            )
            for number, tokens in enumerate(prompts)
        ]
        if request.stream:
            return merge_async_iterators(*answers)
        return [answer async for answer in merge_async_iterators(*answers)]


def client(
    cache: CacheRoom = SMALL, settings: Settings | None = None, registry: Any = None
) -> TestClient:
    Engine.reached = 0
    engine: Any = Engine()
    standing = door(cache, settings, registry=registry)
    standing.stand_before(engine)
    app = FastAPI()
    app.include_router(routes.router)
    errors.install(app)
    app.state.heed_door = standing
    app.state.openai_serving_models = SimpleNamespace(is_base_model=lambda name: True)
    app.state.openai_serving_completion = Completions(engine)
    return TestClient(app, raise_server_exceptions=False)


def body(tokens: int | list[int] = 20, *edits: dict[str, Any], **fields: Any) -> dict[str, Any]:
    lengths = tokens if isinstance(tokens, list) else [tokens]
    prompts = [[1] * length for length in lengths]
    prompt: Any = prompts if isinstance(tokens, list) else prompts[0]
    return {"prompt": prompt, "max_tokens": 4, "interventions": list(edits), **fields}


def test_it_tells_layers_heads_spans_and_cache_class() -> None:
    neutral = {"method": "zerotuning", "gamma": 1, "heads": {"0": [2]}}
    answer = client().post(VALIDATE, json=body(20, EMPHASIS, neutral))
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["object"] == "interventions.validation"
    (prompt,) = told["prompts"]
    assert (prompt["prompt_tokens"], prompt["cache"], prompt["plain"]) == (20, "salted", False)
    assert told["interventions"] == prompt["interventions"]
    emphasis, zerotuning = prompt["interventions"]
    assert (emphasis["layers"], emphasis["heads"]) == ([1], {"1": [0, 3]})
    assert (emphasis["spans"], emphasis["status"]) == ([[5, 9]], "applied")
    assert (zerotuning["layers"], zerotuning["heads"]) == ([0], {"0": [2]})
    assert zerotuning["status"] == "neutral"
    assert Engine.reached == 0


LONGER = Settings(max_streaming_length=4096)
HIDES_NOTHING = {"method": "streaming_llm", "window": MODEL.max_length}
REFUSED: dict[str, tuple[dict[str, Any], Settings | None, str]] = {
    "a window that the cache cannot hold":
        (body(900, WINDOW), None, "interventions.0.window"),
    "the same in a longer answer":
        (body(200, WINDOW, max_tokens=400), None, "interventions.0.window"),
    "in the second of two prompts":
        (body([20, 900], WINDOW), None, "interventions.0.window"),
    "a prompt too long to evict from":
        (body(900, {"method": "knorm", "keep": 0.5}), None, "interventions.0"),
    "a prompt beyond the context":
        (body(2100, HIDES_NOTHING), LONGER, "input_tokens"),
    "a span that is not there":
        (body(8, EMPHASIS), None, "interventions.0.spans.0.end"),
    "a privileged value":
        (body(20, {"method": "head_gain", "gain": 0.5}), None, "interventions.0.gain"),
    "a salt of Heed's":
        (body(20, EMPHASIS, cache_salt="heed1:0"), None, "cache_salt"),
    "Heed's own key":
        (body(20, EMPHASIS, vllm_xargs={"heed": 1}), None, "vllm_xargs.heed"),
    "Heed's own key in another place":
        (body(20, EMPHASIS, extra_args={"heed": 1}), None, "extra_args.heed"),
    "Heed's own key deeper":
        (body(20, sampling_params={"extra_args": {"heed": 1}}), None,
         "sampling_params.extra_args.heed"),
    "a beam search":
        (body(20, EMPHASIS, use_beam_search=True), None, "use_beam_search"),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", REFUSED)
def test_the_error_is_the_one_that_the_request_would_get(kind: str, stream: bool) -> None:
    sent, settings, param = REFUSED[kind]
    server = client(settings=settings)
    told = server.post(VALIDATE, json=sent | {"stream": stream})
    done = server.post("/v1/completions", json=sent | {"stream": stream})
    assert told.status_code in (400, 403), told.text
    assert told.json()["error"]["param"] == param
    assert (told.status_code, told.json()) == (done.status_code, done.json())
    assert Engine.reached == (1 if "second" in kind else 0)


@pytest.mark.parametrize(
    ("cache", "sent"),
    [
        (SMALL, body(200, WINDOW, max_tokens=100)),
        (CacheRoom(15, 32), body(900, WINDOW)),
        (CacheRoom(), body(900, WINDOW)),
    ],
    ids=["the answer ends before", "it fits", "the cache is not known"],
)
def test_a_window_that_the_request_could_have_is_no_error(
    cache: CacheRoom, sent: dict[str, Any]
) -> None:
    answer = client(cache).post(VALIDATE, json=sent)
    assert answer.status_code == 200, answer.text
    assert answer.json()["interventions"][0]["status"] == "applied"


@pytest.mark.parametrize("stream", [False, True])
def test_every_prompt_of_a_list_is_told(stream: bool) -> None:
    answer = client().post(VALIDATE, json=body([9, 12, 30], EMPHASIS, stream=stream))
    assert answer.status_code == 200, answer.text
    assert [prompt["prompt_tokens"] for prompt in answer.json()["prompts"]] == [9, 12, 30]


def test_defaults_are_told_and_those_left_out_say_why() -> None:
    settings = Settings(default_interventions=(WINDOW, {"method": "zerotuning", "gamma": 2}))
    server = client(settings=settings)
    sent = body(900)
    del sent["interventions"]
    answer = server.post(VALIDATE, json=sent)
    assert answer.status_code == 200, answer.text
    window, zerotuning = answer.json()["interventions"]
    assert (window["status"], window["layers"], window["heads"]) == ("skipped", [], {})
    assert "15 blocks" in window["reason"] and window["source"] == "default"
    assert (zerotuning["status"], zerotuning["layers"]) == ("applied", [0, 1])


def test_a_plain_request_is_told_to_be_plain() -> None:
    answer = client().post(VALIDATE, json=body(20)).json()
    assert answer["interventions"] == []
    assert answer["prompts"][0] == {
        "prompt_tokens": 20, "cache": "shared", "plain": True, "interventions": [],
    }  # fmt: skip


def test_nothing_is_counted() -> None:
    registry = CollectorRegistry()
    server = client(registry=registry)
    before = generate_latest(registry)
    for sent in (body(20, EMPHASIS), body(900, WINDOW), body(20, EMPHASIS, cache_salt="heed1:0")):
        server.post(VALIDATE, json=sent)
    assert generate_latest(registry) == before
    server.post("/v1/completions", json=body(900, WINDOW))
    assert generate_latest(registry) != before
