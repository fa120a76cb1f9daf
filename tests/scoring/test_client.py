"""What the client of a calibration makes of a server that stumbles."""

import asyncio

import httpx
import pytest

from heed_server.scoring import client as module
from heed_server.scoring.client import Client
from heed_server.scoring.errors import ScoringError


def tokens(failures: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    """Ask a server whose connection breaks so many times before it answers."""
    monkeypatch.setattr(module, "_PAUSES", (0.0, 0.0))
    left = [httpx.ReadError("")] * failures

    def answer(request: httpx.Request) -> httpx.Response:
        if left:
            raise left.pop()
        return httpx.Response(200, json={"tokens": [1, 2]})

    async def asked() -> tuple[int, ...]:
        client = Client("http://server", None, 2)
        client._http = httpx.AsyncClient(
            base_url="http://server", transport=httpx.MockTransport(answer)
        )
        async with client:
            return await client.tokens({"prompt": "x"})

    return asyncio.run(asked())


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_a_connection_that_breaks_is_no_end(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tokens(failures, monkeypatch) == (1, 2)


def test_a_server_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ScoringError, match=r"http://server.*ReadError"):
        tokens(3, monkeypatch)
