"""An operator's policy over HTTP: refusals with their path, the catalogue, profiles and model names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from live_server import FLAGS, LiveServer, serving
from test_refusals import assert_refused

pytestmark = pytest.mark.slow

POLICY: dict[str, Any] = {
    "methods": {
        "zerotuning": {"gamma": {"maximum": 2}},
        "emphasis": {},
        "streaming_llm": {},
        "head_gain": {},
        "knorm": {},
    },
    "protect_prefix_tokens": 6,
}
DEFAULTS = [{"method": "zerotuning", "gamma": 2}]
SPARING = {"method": "emphasis", "spans": [{"start": 0, "end": 6}, {"start": 8, "end": 9}]}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("policy")
    (folder / "policy.json").write_text(json.dumps(POLICY))
    (folder / "defaults.json").write_text(json.dumps(DEFAULTS))
    flags = [*FLAGS, "--intervention-policy", str(folder / "policy.json")]
    flags += ["--default-interventions", str(folder / "defaults.json")]
    flags += ["--max-body-bytes", "100000"]
    with serving(folder / "server.log", flags) as server:
        yield server


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"method": "locore"}, "interventions.0.method"),
        ({"method": "zerotuning", "gamma": 3}, "interventions.0.gamma"),
        ({"method": "zerotuning", "gamma": 1.5}, "interventions.0"),
        ({"method": "emphasis", "spans": [{"start": 8, "end": 9}]}, "interventions.0"),
        ({"method": "streaming_llm", "window": 16}, "interventions.0"),
        ({"method": "knorm", "budget": 12}, "interventions.0"),
    ],
    ids=["a method", "a bound", "towards one token", "away from the prefix", "hidden", "evicted"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_what_is_against_the_policy_is_forbidden_and_named(
    guarded: LiveServer, item: dict[str, Any], param: str, stream: bool
) -> None:
    prompt = guarded.prompt(40)
    for response in (
        guarded.raw_completion(prompt, interventions=[item], stream=stream),
        guarded.post(
            "/v1/interventions/validate",
            {"model": guarded.model, "prompt": prompt, "interventions": [item]},
        ),
    ):
        assert "policy" in assert_refused(response, param, 403)


@pytest.mark.parametrize(
    "item",
    [
        SPARING,
        {"method": "streaming_llm", "sinks": 6, "window": 16},
        {"method": "knorm", "budget": 12, "sinks": 6},
        {"method": "head_gain", "gain": 1.5},
    ],
    ids=lambda item: str(item["method"]),
)
def test_what_spares_the_protected_tokens_is_carried_out(
    guarded: LiveServer, item: dict[str, Any]
) -> None:
    report = guarded.complete(guarded.prompt(40), [item]).report
    assert report is not None and report[0]["status"] == "applied"


def test_a_policy_allows_nothing_that_needs_a_flag(guarded: LiveServer) -> None:
    response = guarded.raw_completion("Hello", interventions=[{"method": "head_gain", "gain": 0}])
    assert "--allow-privileged-interventions" in assert_refused(response, code=403)


def test_the_servers_own_defaults_are_held_to_the_policy(guarded: LiveServer) -> None:
    report = guarded.complete(guarded.prompt(40)).report
    assert report is not None
    assert (report[0]["status"], report[0]["source"]) == ("skipped", "default")
    assert "protects the first 6 tokens" in report[0]["reason"]


def test_the_catalogue_shows_what_is_left(guarded: LiveServer) -> None:
    entries = guarded.client.get("/v1/interventions").json()["data"]
    allowed = {entry["method"] for entry in entries if entry["available"]}
    assert allowed == set(POLICY["methods"])
    gamma = guarded.client.get("/v1/interventions/zerotuning").json()["parameters"]["properties"]
    assert gamma["gamma"]["allOf"] == [{"maximum": 2}]


def test_refusals_of_the_policy_are_counted(guarded: LiveServer) -> None:
    before = guarded.metric("heed_rejections_total", reason="policy")
    guarded.raw_completion("Hello", interventions=[{"method": "locore"}])
    assert guarded.metric("heed_rejections_total", reason="policy") == before + 1


def test_a_body_above_the_servers_limit_is_refused(guarded: LiveServer) -> None:
    response = guarded.raw_completion("x" * 100_001)
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "RequestTooLargeError"
    assert guarded.raw_completion("Hello").status_code == 200
