"""The largest body: refused by its declared length, or when it turns out to be longer."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from heed_server.api import errors
from heed_server.api.body_limit import BodyLimit
from heed_server.api.other_doors import OtherDoors
from heed_server.settings import Settings

MOST = 1000


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def typed(body: dict[str, Any]) -> dict[str, int]:
        return {"fields": len(body)}

    @app.post("/other")
    async def untyped(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    app.add_middleware(OtherDoors)
    app.add_middleware(BodyLimit)
    errors.install(app)
    app.state.heed_door = SimpleNamespace(settings=Settings(max_body_bytes=MOST))
    return TestClient(app)


def in_pieces(size: int) -> Iterator[bytes]:
    """A JSON object of `size` bytes, sent without its length."""
    yield b'{"a": "'
    for _ in range(size - 9):
        yield b"a"
    yield b'"}'


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/other"])
@pytest.mark.parametrize("declared", [True, False], ids=["length declared", "in pieces"])
def test_a_body_above_the_limit_is_refused_in_the_envelope(
    client: TestClient, path: str, declared: bool
) -> None:
    pieces = in_pieces(MOST + 1)
    content: Any = b"".join(pieces) if declared else pieces
    response = client.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 413
    error = response.json()["error"]
    assert error["type"] == "RequestTooLargeError" and str(MOST) in error["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/other"])
@pytest.mark.parametrize("declared", [True, False], ids=["length declared", "in pieces"])
def test_a_body_of_just_the_limit_is_taken(client: TestClient, path: str, declared: bool) -> None:
    pieces = in_pieces(MOST)
    content: Any = b"".join(pieces) if declared else pieces
    response = client.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 200, response.text


def test_a_length_that_is_no_number_is_not_believed(client: TestClient) -> None:
    headers = {"content-type": "application/json", "content-length": "9" * 30}
    assert client.post("/other", content=b"{}", headers=headers).status_code == 413
