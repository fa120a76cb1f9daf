"""Heed's own key in what vLLM hands on to its sampling parameters: no client may write it."""

from collections.abc import Mapping
from typing import Any

from heed_server.api.errors import RefusedError
from heed_server.engine.payload import RESERVED_KEY

_PLACES = (("vllm_xargs",), ("extra_args",), ("sampling_params", "extra_args"))
"""Where vLLM's bodies hold such parameters, one route or another."""


def reserved_path(body: Mapping[str, Any]) -> str | None:
    """The path of the key in a body, or None where the body does not hold it."""
    for place in _PLACES:
        if RESERVED_KEY in _at(body, place):
            return ".".join((*place, RESERVED_KEY))
    return None


def reserved(path: str) -> RefusedError:
    """The refusal of a request that holds it there."""
    return RefusedError(f"{path} is reserved: send `interventions` instead", path)


def _at(value: Any, path: tuple[str, ...]) -> Mapping[str, Any]:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}
