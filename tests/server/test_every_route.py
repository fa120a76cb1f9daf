"""Every route of vLLM's own application that takes a body, walked: nothing is accepted and ignored."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tests.server.application import application, doors
from vllm.config import ModelConfig

from heed_server.api.other_doors import CARRYING
from heed_server.models import bundled_model

INTERVENTIONS: list[dict[str, Any]] = [{"method": "zerotuning", "gamma": 2}]
MESSAGES = [{"role": "user", "content": "Hello"}]
USABLE = {"prompt": "Hello", "messages": MESSAGES, "input": "Hello", "max_tokens": 1}


@pytest.fixture(
    scope="module", params=[[], ["--enable-scale-out"]], ids=["as started", "scale-out"]
)
def app(request: pytest.FixtureRequest) -> Iterator[FastAPI]:
    with application(("generate", "transcription"), request.param) as built:
        yield built


def client_of(app: FastAPI) -> TestClient:
    # No handler has its state here: what gets as far as one ends in an error of the server.
    return TestClient(app, raise_server_exceptions=False)


def assert_refused(response: Any, place: str) -> None:
    assert response.status_code == 400, f"{place}: {response.status_code} {response.text}"
    assert response.json()["error"]["param"] == "interventions", place


def test_a_route_takes_interventions_or_refuses_them(app: FastAPI) -> None:
    walked = doors(app)
    paths = {path for _, path in walked}
    assert paths >= CARRYING
    hidden = paths - app.openapi()["paths"].keys()
    assert app.state.args.enable_scale_out or "/inference/v1/generate" in hidden
    assert paths >= {
        "/invocations",
        "/tokenize",
        "/inference/v1/generate",
        "/v1/responses/1/cancel",
    }
    client = client_of(app)
    for verb, path in sorted(walked):
        if path in CARRYING:
            continue
        for body in ({}, USABLE):
            fields = body | {"model": "tiny", "interventions": INTERVENTIONS}
            assert_refused(client.request(verb, path, json=fields), f"{verb} {path}")


def test_a_form_with_interventions_is_refused(app: FastAPI) -> None:
    client, path = client_of(app), "/v1/audio/transcriptions"
    assert_refused(client.post(path, data={"interventions": "[]"}), "fields")
    files = {"file": ("a.wav", b"name=interventions")}
    assert_refused(client.post(path, data={"interventions": "[]"}, files=files), "parts")
    plain = client.post(path, data={"model": "tiny"}, files=files)
    assert "cannot carry" not in plain.text


@pytest.mark.parametrize(
    "path", ["/tokenize", "/v1/chat/completions/render", "/generative_scoring"]
)
def test_bodies_without_interventions_go_on_to_their_routes(app: FastAPI, path: str) -> None:
    body = USABLE | {"prompt": 'Content-Disposition: form-data; name="interventions"'}
    assert "cannot carry" not in client_of(app).post(path, json=body).text


def test_a_server_that_only_embeds_refuses_interventions() -> None:
    model = bundled_model("heed-tiny")
    assert model is not None
    config = ModelConfig(model=str(model.directory), runner="pooling")
    with application(("embed", "token_embed"), model_config=config) as app:
        client = client_of(app)
        assert {("POST", "/v1/embeddings"), ("POST", "/pooling")} <= doors(app)
        for verb, path in sorted(doors(app)):
            fields = USABLE | {"interventions": INTERVENTIONS}
            assert_refused(client.request(verb, path, json=fields), f"{verb} {path}")
        assert "cannot carry" not in client.post("/v1/embeddings", json=USABLE).text
        assert client.post("/v1/completions", json=USABLE).status_code == 404
