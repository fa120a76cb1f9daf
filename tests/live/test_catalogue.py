"""What the server says about itself: catalogue, validation, OpenAPI document, metrics."""

from __future__ import annotations

import json
import time
from itertools import product
from typing import Any

import pytest
from live_server import LiveServer
from test_refusals import assert_refused

from heed_interventions import METHODS

# Seconds that a gauge may lag behind: workers are asked every other second, on a busy machine later.
LAG = 40


def test_the_catalogue_lists_every_method_with_its_parameters(server: LiveServer) -> None:
    answer = server.client.get("/v1/interventions").json()
    assert answer["object"] == "list"
    assert answer["model"] == {
        "layers": server.shape.num_hidden_layers,
        "query_heads": server.shape.num_attention_heads,
        "kv_heads": server.shape.num_key_value_heads,
        "images": False,
    }
    by_name = {entry["method"]: entry for entry in answer["data"]}
    assert list(by_name) == list(METHODS)
    for entry in by_name.values():
        keys = {"method", "title", "summary", "paper", "parameters", "cache", "available"}
        assert keys | {"reason", "privileged", "support"} <= set(entry)
        # The live tests run on the CPU, where there is one path; what needs an image needs another model.
        cpu, cuda = entry["support"][:4], entry["support"][4:]
        assert [cell["available"] for cell in cpu] == [True, False, False, False]
        assert [cell["verified"] for cell in cpu] == ["on_device", None, None, None]
        for cell, path in zip(cuda, product(("v1", "v2"), ("sync", "async")), strict=True):
            assert (cell["device"], cell["runner"], cell["scheduler"]) == ("cuda", *path)
            assert (cell["available"], cell["reason"]) == (True, None)
            assert cell["verified"] == "simulated"
        assert entry["cache"] in ("shared", "salted", "private")
        assert entry["available"] != METHODS[entry["method"]].needs_image
        assert entry["available"] or entry["reason"]
    gamma = by_name["zerotuning"]["parameters"]["properties"]["gamma"]
    assert (gamma["exclusiveMinimum"], gamma["maximum"]) == (0, 10)
    assert by_name["locore"]["cache"] == "shared"
    assert by_name["zerotuning"]["cache"] == "salted"


@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_a_page_of_the_catalogue(server: LiveServer, method: str) -> None:
    answer = server.client.get("/v1/interventions").json()
    entry = server.client.get(f"/v1/interventions/{method}").json()
    assert entry in answer["data"]
    assert entry["method"] == method


def test_an_unknown_method_has_no_page(server: LiveServer) -> None:
    message = assert_refused(server.client.get("/v1/interventions/zerotunning"), code=404)
    assert "zerotuning" in message


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_validate_says_what_would_happen(server: LiveServer, kind: str) -> None:
    edits = [
        {"method": "emphasis", "spans": [{"text": "red door"}], "layers": [0]},
        {"method": "zerotuning", "gamma": 1},
    ]
    text = "The red door is open."
    body: dict[str, Any] = {"model": server.model, "interventions": edits, "max_tokens": 4}
    body |= {"prompt": text} if kind == "completion" else {
        "messages": [{"role": "user", "content": text}]
    }  # fmt: skip
    response = server.post("/v1/interventions/validate", body)
    assert response.status_code == 200, response.text
    emphasis, zerotuning = response.json()["interventions"]
    assert emphasis["method"] == "emphasis"
    assert emphasis["cache"] == "salted"
    assert emphasis["spans"]
    assert zerotuning["status"] == "neutral"
    path = "/v1/completions" if kind == "completion" else "/v1/chat/completions"
    ran = server.post(path, body).json()["interventions"]
    for told, done in zip((emphasis, zerotuning), ran, strict=True):
        for key in ("method", "layer_count", "head_count", "cache", "spans"):
            assert told.get(key) == done.get(key), key


def test_validate_generates_nothing(server: LiveServer) -> None:
    before = server.metric("vllm:generation_tokens_total")
    body = {"model": server.model, "prompt": "Hi", "interventions": [{"method": "locore"}]}
    assert server.post("/v1/interventions/validate", body).status_code == 200
    assert server.metric("vllm:generation_tokens_total") == before


@pytest.mark.parametrize(
    ("edit", "param"),
    [
        ({"method": "zerotuning", "gamma": 11}, "interventions.0.gamma"),
        ({"method": "emphasis", "spans": [{"text": "absent"}]}, "interventions.0.spans"),
        ({"method": "zerotuning", "gamma": 2, "layers": [99]}, "interventions.0.layers"),
    ],
    ids=str,
)
def test_validate_finds_the_errors_that_a_request_would_get(
    server: LiveServer, edit: dict[str, Any], param: str
) -> None:
    body = {"model": server.model, "prompt": "Hello", "interventions": [edit]}
    told, done = (
        server.post(path, body) for path in ("/v1/interventions/validate", "/v1/completions")
    )
    assert_refused(told, param, below=True)
    assert told.json() == done.json()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_openapi_document_describes_the_field(server: LiveServer, path: str) -> None:
    document = server.client.get("/openapi.json").json()
    operation = document["paths"][path]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    field = schema["properties"]["interventions"]
    reached, seen = json.dumps(field), set()
    # Follow the references out of the field: every method has to be reachable from it.
    while new := {name for name in document["components"]["schemas"] if f'/{name}"' in reached}:
        if new <= seen:
            break
        seen |= new
        reached = json.dumps(field) + "".join(
            json.dumps(document["components"]["schemas"][name]) for name in sorted(seen)
        )
    for word in [*METHODS, "gamma", "q_scale", "window", "protect_positions"]:
        assert f'"{word}"' in reached, word


def rising(server: LiveServer, name: str, before: float, by: float, **labels: str) -> None:
    """The metric rises by `by` and no further; what workers report may come a little later."""
    deadline = time.monotonic() + LAG
    while (found := server.metric(name, **labels) - before) < by and time.monotonic() < deadline:
        time.sleep(0.5)
    assert found == by, f"{name} {labels} rose by {found}"


def test_metrics_stand_beside_those_of_vllm(server: LiveServer) -> None:
    text = server.client.get("/metrics").text
    for name in ("heed_requests_total", "heed_rejections_total", "heed_edited_tokens_total"):
        assert f"# TYPE {name} counter" in text, name
    for name in ("heed_edit_table_rows", "heed_build_info"):
        assert f"# TYPE {name} gauge" in text, name
    assert 'vllm="0.32.0"' in text
    assert "vllm:num_requests_running" in text
    assert "vllm:prefix_cache_hits_total" in text


def test_edited_requests_and_their_tokens_are_counted(server: LiveServer) -> None:
    names = "heed_requests_total", "heed_edited_tokens_total"
    of = {"method": "zerotuning"}
    requests = server.metric(names[0], **of, outcome="applied")
    neutral = server.metric(names[0], **of, outcome="neutral")
    prompt = server.metric(names[1], **of, phase="prompt")
    generated = server.metric(names[1], **of, phase="generation")
    server.fresh(server.prompt(40), [{"method": "zerotuning", "gamma": 2}], max_tokens=9)
    server.fresh(server.prompt(40), [{"method": "zerotuning", "gamma": 1}], max_tokens=9)
    rising(server, names[0], requests, 1, **of, outcome="applied")
    rising(server, names[0], neutral, 1, **of, outcome="neutral")
    rising(server, names[1], prompt, 40, **of, phase="prompt")
    rising(server, names[1], generated, 8, **of, phase="generation")


def test_refused_requests_are_counted_under_bounded_labels(server: LiveServer) -> None:
    before = server.metric("heed_rejections_total")
    unknown = server.metric("heed_requests_total", method="unknown", outcome="rejected")
    server.chat("Hi", interventions=[{"method": "a made-up name"}])
    server.chat("Hi", interventions=[{"method": "zerotuning", "gamma": 11}])
    rising(server, "heed_rejections_total", before, 2)
    rising(server, "heed_requests_total", unknown, 1, method="unknown", outcome="rejected")
    assert "a made-up name" not in server.client.get("/metrics").text


def test_what_only_heed_may_set_is_refused_and_counted(server: LiveServer) -> None:
    names = {
        reason: server.metric("heed_rejections_total", reason=reason)
        for reason in ("reserved", "route")
    }
    body = {"model": server.model, "prompt": "Hello", "max_tokens": 1}
    hello = [{"role": "user", "content": "Hello"}]
    for path, sent in (
        ("/v1/completions", body | {"vllm_xargs": {"heed": 1}}),
        ("/v1/completions", body | {"cache_salt": "heed1:0"}),
        ("/v1/responses", {"input": "Hello", "vllm_xargs": {"heed": 1}}),
        ("/v1/messages/count_tokens", {"messages": hello, "interventions": []}),
    ):
        assert server.client.post(path, json=sent).status_code == 400, path
    for (reason, before), by in zip(names.items(), (3, 1), strict=True):
        rising(server, "heed_rejections_total", before, by, reason=reason)


def wait_for_rows(server: LiveServer, some: bool) -> None:
    """Until the gauge says that rows of edit tables are in use, or that none are."""
    deadline = time.monotonic() + LAG
    while (found := bool(server.metric("heed_edit_table_rows"))) != some:
        assert time.monotonic() < deadline, f"rows in use: {found}"
        time.sleep(0.2)


def test_the_edit_table_holds_rows_while_requests_are_edited_and_none_after_their_clients_left(
    server: LiveServer,
) -> None:
    body: dict[str, Any] = {"model": server.model, "prompt": "Hello", "stream": True}
    # As long as the context allows: they have to outlive the gauge's lag.
    body |= {"max_tokens": 1900, "ignore_eos": True, "n": 3}
    body["interventions"] = [{"method": "zerotuning", "gamma": 2}]
    wait_for_rows(server, False)  # of the requests before
    with server.client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        # An iterator that nobody holds any more closes the connection.
        lines = response.iter_lines()
        next(lines)
        wait_for_rows(server, True)
    wait_for_rows(server, False)
