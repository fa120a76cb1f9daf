"""With `--api-key` every route under /v1 asks for it; what stays open is known and carries no edits."""

import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from vllm import envs
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.serve.middleware.authenticate import GUARDED_PREFIX
from vllm.utils.argparse_utils import FlexibleArgumentParser

from heed_server.api.routes import router

ROOT = Path(__file__).parents[2]
KEY = "the-key"
OPEN = {
    "/detokenize", "/generative_scoring", "/health", "/invocations", "/is_scaling_elastic_ep",
    "/kv_event_sources", "/load", "/metrics", "/ping", "/scale_elastic_ep", "/tokenize", "/version",
}  # fmt: skip
"""Routes that vLLM leaves open, with or without a key. docs/security.md names those that compute."""


def application(arguments: list[str]) -> FastAPI:
    parser = make_arg_parser(FlexibleArgumentParser())
    parsed: Namespace = parser.parse_args(arguments)
    return build_app(parsed, ("generate",))


@pytest.fixture(scope="module")
def app() -> Iterator[FastAPI]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_PLUGINS", "heed")
        yield application(["--api-key", KEY])


def doors(app: FastAPI) -> list[tuple[str, str]]:
    """Method and path of every route, with values put in where a path has a place for one."""
    found = []
    for path, operations in app.openapi()["paths"].items():
        found += [(verb.upper(), re.sub(r"\{.*?\}", "1", path)) for verb in operations]
    return found


def test_heeds_routes_are_among_those_that_are_walked(app: FastAPI) -> None:
    walked = {path for _, path in doors(app)}
    assert {re.sub(r"\{.*?\}", "1", route.path) for route in router.routes} <= walked  # type: ignore[attr-defined]


def test_every_route_under_v1_asks_for_the_key(app: FastAPI) -> None:
    client = TestClient(app, raise_server_exceptions=False)
    guarded = [door for door in doors(app) if door[1].startswith("/v1")]
    assert len(guarded) >= 10
    for verb, path in guarded:
        for headers in ({}, {"authorization": "Bearer other"}, {"authorization": KEY}):
            body = {"interventions": []} if verb == "POST" else None
            response = client.request(verb, path, json=body, headers=headers)
            assert response.status_code == 401, f"{verb} {path}: {response.status_code}"


def test_a_route_that_is_open_is_a_known_one(app: FastAPI) -> None:
    client = TestClient(app, raise_server_exceptions=False)
    found = {
        path for verb, path in doors(app) if client.request(verb, path, json={}).status_code != 401
    }
    assert found <= OPEN, f"new open routes: {sorted(found - OPEN)}"


def test_no_open_route_takes_interventions(app: FastAPI) -> None:
    client = TestClient(app, raise_server_exceptions=False)
    for verb, path in doors(app):
        if verb == "POST" and not path.startswith("/v1"):
            body = {"interventions": [{"method": "zerotuning", "gamma": 2}]}
            assert client.post(path, json=body).status_code in (400, 401), path


def test_the_key_opens_the_door(app: FastAPI) -> None:
    client = TestClient(app, raise_server_exceptions=False)
    headers = {"authorization": f"Bearer {KEY}"}
    assert (
        client.post("/v1/responses", json={"interventions": []}, headers=headers).status_code == 400
    )


def test_the_key_guards_what_the_page_says() -> None:
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    guarded = re.search(r"it guards (.*?) \(", page)
    assert guarded and tuple(re.findall(r"`(/\w+)`", guarded[1])) == GUARDED_PREFIX


def test_the_switches_that_the_page_warns_of_and_advises_are_vllms() -> None:
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    for name in re.findall(r"`(VLLM_\w+)=\d`", page):
        assert name in envs.environment_variables
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(
        ["--allowed-media-domains", "one.example", "two.example"]
    )
    assert parsed.allowed_media_domains == ["one.example", "two.example"]
