"""An openai client all of whose generations carry interventions."""

from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any, TypeVar, cast

from heed_client.intervention import Interventions, extra_body

Client = TypeVar("Client")

_RESOURCES = frozenset(
    {"beta", "chat", "completions", "responses", "with_raw_response", "with_streaming_response"}
)
_COPIES = frozenset({"copy", "with_options"})
_CALLS = frozenset({"create", "parse", "stream"})


def with_interventions(client: Client, interventions: Interventions) -> Client:
    """`client` with `interventions` in every chat completion, completion and response.

    client: an `openai.OpenAI` or `openai.AsyncOpenAI`, which stays as it is. The result is used as one,
    `with_options` and `with` statements included; an `extra_body` of a call is kept, and its own
    `interventions` win.
    """
    return cast(Client, _Edited(client, extra_body(interventions)))


class _Edited:
    """A client, or one of its resources, that adds fields to the bodies of its generations."""

    def __init__(self, inner: Any, fields: dict[str, Any]) -> None:
        self._inner, self._fields = inner, fields

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name in _RESOURCES:
            return _Edited(found, self._fields)
        if name in _COPIES:
            return self._copying(found)
        if name in _CALLS and callable(found):
            return self._adding(found)
        return found

    # Statements look these up in the class, past `__getattr__`.
    def __enter__(self) -> "_Edited":
        self._inner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inner.__exit__(kind, error, trace)

    async def __aenter__(self) -> "_Edited":
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._inner.__aexit__(kind, error, trace)

    def _copying(self, copy: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(copy)
        def copying(*args: Any, **rest: Any) -> _Edited:
            return _Edited(copy(*args, **rest), self._fields)

        return copying

    def _adding(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def adding(*args: Any, extra_body: Any = None, **rest: Any) -> Any:
            return call(*args, extra_body={**self._fields, **(extra_body or {})}, **rest)

        return adding
