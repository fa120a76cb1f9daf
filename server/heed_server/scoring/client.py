"""The server that items are put to, as far as scoring speaks to it."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import ValidationError

from heed_server.profiles.identity import ModelIdentity, Serving
from heed_server.scoring.errors import ScoringError

_PAUSES = (0.1, 1.0)
"""Seconds before a request that broke is sent again."""


class Client:
    """A running server, with a bound on requests in flight; an async context manager."""

    def __init__(self, url: str, api_key: str | None, in_flight: int) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/"),
            headers=headers,
            timeout=600,
            limits=httpx.Limits(max_connections=in_flight),
        )
        self._gate = asyncio.Semaphore(in_flight)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def served(self) -> tuple[ModelIdentity, Serving]:
        """The model being served, and with what. Raises `ScoringError` where it is not told."""
        answer = await self._ask("GET", "/v1/intervention-profiles")
        if answer.get("model") is None:
            raise ScoringError("the server does not know its model's files (see its log)")
        try:
            model = ModelIdentity.model_validate(answer["model"])
            return model, Serving.model_validate(answer.get("serving"))
        except ValidationError as error:
            raise ScoringError("the server runs another version of Heed") from error

    async def tokens(self, body: Mapping[str, Any]) -> tuple[int, ...]:
        """Token ids of a prompt, or of messages in the model's chat template."""
        return tuple((await self._ask("POST", "/tokenize", body))["tokens"])

    async def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a chat."""
        return await self._ask("POST", "/v1/chat/completions", {"temperature": 0, **body})

    async def complete(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The choices of a completion, one per prompt, in the order of the prompts."""
        answer = await self._ask("POST", "/v1/completions", {"temperature": 0, **body})
        return sorted(answer["choices"], key=lambda choice: int(choice["index"]))

    async def report(
        self, messages: Sequence[Mapping[str, Any]], intervention: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The report on an intervention in the prompt of a chat; one token is generated."""
        body = {"messages": list(messages), "max_tokens": 1, "interventions": [intervention]}
        answer = await self._ask("POST", "/v1/chat/completions", {"temperature": 0, **body})
        found: dict[str, Any] = answer["interventions"][0]
        return found

    async def _ask(
        self, verb: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        async with self._gate:
            response = await self._response(verb, path, body)
        if response.status_code != 200:
            raise ScoringError(
                f"{verb} {path} was answered with {response.status_code}: {response.text[:400]}"
            )
        answer: dict[str, Any] = response.json()
        return answer

    async def _response(
        self, verb: str, path: str, body: Mapping[str, Any] | None
    ) -> httpx.Response:
        """A busy server may close an idle connection at the moment at which it is used again, and answers
        are the same each time: so what breaks is asked again."""
        for pause in _PAUSES:
            with suppress(httpx.TransportError):
                return await self._http.request(verb, path, json=body)
            await asyncio.sleep(pause)
        try:
            return await self._http.request(verb, path, json=body)
        except httpx.HTTPError as error:
            raise ScoringError(f"{self._http.base_url}: {error!r}") from error
