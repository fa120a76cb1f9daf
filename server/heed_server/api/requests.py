"""vLLM's request bodies with one more typed field, and what it says."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import WithJsonSchema
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest

from heed_interventions.errors import InterventionError
from heed_interventions.method import Method
from heed_interventions.parse import parse
from heed_interventions.registry import field_schema
from heed_server.api.errors import RefusedError, refused
from heed_server.api.exchange import Exchange
from heed_server.api.model_names import IsServed, take_profile
from heed_server.api.reserved import reserved, reserved_path
from heed_server.metrics import Metrics
from heed_server.profiles.merge import merged
from heed_server.profiles.store import ProfileStore

FIELD = "interventions"
Interventions = Annotated[Any, WithJsonSchema({"anyOf": [field_schema(), {"type": "null"}]})]
"""Typed in the served schema; validated by `exchange_of`, whose errors name the path."""


class HeedChatRequest(ChatCompletionRequest):  # type: ignore[misc]
    """`ChatCompletionRequest` with `interventions`."""

    interventions: Interventions = None


class HeedCompletionRequest(CompletionRequest):  # type: ignore[misc]
    """`CompletionRequest` with `interventions`."""

    interventions: Interventions = None


def exchange_of(
    request: HeedChatRequest | HeedCompletionRequest,
    profiles: ProfileStore,
    is_served: IsServed,
    metrics: Metrics | None,
) -> Exchange | None:
    """The request's interventions, parsed; None for a request that neither sends nor inherits any.

    A profile in the model's name, which is cut off, comes after those in the list.
    is_served: whether a name is one of the served model's own.
    metrics: where refusals are counted; None for a request that is not going to run.

    Raises:
        RefusedError: the list is malformed, or comes with something that cannot carry it.
    """
    # vLLM's bodies keep fields that they do not know.
    taken = reserved_path({"vllm_xargs": request.vllm_xargs, **(request.model_extra or {})})
    if taken is not None:
        if metrics is not None:
            metrics.rejected("reserved")
        raise reserved(taken)
    raw: Any = request.interventions
    # vLLM hands the request on to handlers that know nothing of the field.
    request.interventions = None
    loaded = profiles.loaded
    asked = bool(raw)
    try:
        named = take_profile(request, is_served, loaded)
        if named is not None and (raw is None or isinstance(raw, list)):
            raw = [*(raw or []), named]
        if raw is None:
            return _defaults(loaded.defaults, request.use_beam_search)
        methods = parse(merged(raw, loaded.profiles, loaded.refused))
    except InterventionError as error:
        if metrics is not None:
            metrics.rejected(error.reason, _named_methods(raw))
        raise refused(error) from error
    if methods and request.use_beam_search:
        if metrics is not None:
            metrics.rejected("composition", [method.method for method in methods])
        raise RefusedError(
            "interventions cannot be combined with use_beam_search: send one of them",
            "use_beam_search",
        )
    return Exchange(methods, "request", asked)


def _defaults(methods: Sequence[Method], beam_search: bool) -> Exchange | None:
    if not methods:
        return None
    skipped = "use_beam_search cannot carry interventions" if beam_search else None
    return Exchange(methods, "default", asked=False, skipped=skipped)


def _named_methods(raw: Any) -> list[object]:
    # A refused list may be anything; only its first few names count.
    if not isinstance(raw, list):
        return []
    names = [item.get("method") for item in raw[:8] if isinstance(item, dict)]
    return [name for name in names if isinstance(name, str)]
