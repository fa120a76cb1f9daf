"""vLLM's model configuration in the API process, with a context length that depends on the request.

Everything that vLLM's handlers check against `max_model_len` is checked against the model's own
length; while a request that may be longer is rendered and submitted, against that request's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_LENGTH: ContextVar[int | None] = ContextVar("heed_context_length", default=None)


@contextmanager
def context_length(length: int | None) -> Iterator[None]:
    """While this is open, requests of this context may be so long; None: as long as the model allows."""
    token = _LENGTH.set(length)
    try:
        yield
    finally:
        _LENGTH.reset(token)


def let_requests_differ(model_config: Any) -> None:
    """Make `model_config.max_model_len` answer for the request at hand; safe to call again.

    All of vLLM's handlers in a process hold this one object, some of them under other names.
    """
    if not hasattr(model_config, "heed_context_length"):
        model_config.__class__ = _with_length_by_request(type(model_config))


def _with_length_by_request(kind: type) -> type:
    def read(self: Any) -> int:
        length: int = _LENGTH.get() or self.__dict__["max_model_len"]
        return length

    def write(self: Any, length: int) -> None:
        self.__dict__["max_model_len"] = length

    fields = {"max_model_len": property(read, write), "heed_context_length": True}
    return type(kind.__name__, (kind,), {**fields, "__module__": __name__})
