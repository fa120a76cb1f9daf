"""Heed's own routes: the catalogue, profiles, validation and diagnostics; sync and async."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

import httpx

from heed_client.attention import ARCHIVE, Attention, unpacked
from heed_client.intervention import Interventions, bodies
from heed_client.report import Report, reports

T = TypeVar("T")


class HeedError(Exception):
    """The server's refusal. param: the path of the field that it is about, where it is about one."""

    def __init__(self, message: str, status: int, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.param = message, status, param


@dataclass(frozen=True)
class _Call(Generic[T]):
    """One request, and how its answer is read."""

    verb: str
    path: str
    read: Callable[[Any], T]
    body: Mapping[str, Any] | None = None


def _methods() -> _Call[list[dict[str, Any]]]:
    return _Call("GET", "/interventions", lambda answer: list(answer["data"]))


def _method(name: str) -> _Call[dict[str, Any]]:
    return _Call("GET", f"/interventions/{name}", dict)


def _profiles() -> _Call[list[dict[str, Any]]]:
    return _Call("GET", "/intervention-profiles", lambda answer: list(answer["data"]))


def _validate(interventions: Interventions, fields: Mapping[str, Any]) -> _Call[list[Report]]:
    body = {**fields, "interventions": bodies(interventions)}
    return _Call("POST", "/interventions/validate", reports, body)


def _attention(interventions: Interventions | None, fields: Mapping[str, Any]) -> _Call[Attention]:
    edits = {} if interventions is None else {"interventions": bodies(interventions)}
    return _Call("POST", "/attention", Attention.model_validate, {**fields, **edits})


class Heed:
    """A server's own routes.

    base_url: as the openai package takes it, with `/v1`.

    Every call raises `HeedError` where the server refuses.
    """

    def __init__(self, base_url: str, api_key: str = "none", timeout: float = 600) -> None:
        self._http = httpx.Client(base_url=base_url, headers=_headers(api_key), timeout=timeout)

    def methods(self) -> list[dict[str, Any]]:
        """The catalogue: every method, with its JSON Schema and whether this model can have it."""
        return self._send(_methods())

    def method(self, name: str) -> dict[str, Any]:
        """One entry of the catalogue."""
        return self._send(_method(name))

    def profiles(self) -> list[dict[str, Any]]:
        """The profiles that requests can ask for."""
        return self._send(_profiles())

    def validate(self, interventions: Interventions, **fields: Any) -> list[Report]:
        """What a request would do, without generating.

        fields: the rest of its body: `prompt`, or `messages`.
        """
        return self._send(_validate(interventions, fields))

    def attention(self, interventions: Interventions | None = None, **fields: Any) -> Attention:
        """What a prompt's attention looks like.

        fields: of the body of `POST /v1/attention`, `prompt` or `messages` among them.
        """
        return self._send(_attention(interventions, fields))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> "Heed":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, call: _Call[T]) -> T:
        return call.read(_checked(self._http.request(call.verb, call.path, json=call.body)))


class AsyncHeed:
    """The same routes as `Heed`'s, for asyncio."""

    def __init__(self, base_url: str, api_key: str = "none", timeout: float = 600) -> None:
        self._http = httpx.AsyncClient(
            base_url=base_url, headers=_headers(api_key), timeout=timeout
        )

    async def methods(self) -> list[dict[str, Any]]:
        """See `Heed.methods`."""
        return await self._send(_methods())

    async def method(self, name: str) -> dict[str, Any]:
        """See `Heed.method`."""
        return await self._send(_method(name))

    async def profiles(self) -> list[dict[str, Any]]:
        """See `Heed.profiles`."""
        return await self._send(_profiles())

    async def validate(self, interventions: Interventions, **fields: Any) -> list[Report]:
        """See `Heed.validate`."""
        return await self._send(_validate(interventions, fields))

    async def attention(
        self, interventions: Interventions | None = None, **fields: Any
    ) -> Attention:
        """See `Heed.attention`."""
        return await self._send(_attention(interventions, fields))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncHeed":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _send(self, call: _Call[T]) -> T:
        return call.read(_checked(await self._http.request(call.verb, call.path, json=call.body)))


def _headers(api_key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"}


def _checked(response: httpx.Response) -> Any:
    if response.is_success:
        packed = response.headers.get("content-type") == ARCHIVE
        return unpacked(response.content) if packed else response.json()
    try:
        error = response.json()["error"]
        message, param = str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, param = response.text[:500], None
    raise HeedError(message, response.status_code, param)
