"""vLLM's request bodies with one more typed field, and what it says."""

from typing import Annotated, Any

from pydantic import WithJsonSchema
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from heed_interventions.errors import InterventionError
from heed_interventions.parse import parse
from heed_interventions.registry import field_schema
from heed_server.api.errors import RefusedError, refused
from heed_server.api.exchange import Exchange
from heed_server.api.model_names import IsServed, take_profile
from heed_server.api.reserved import reserved, reserved_path
from heed_server.metrics import Metrics
from heed_server.profiles.merge import merged
from heed_server.profiles.store import Loaded, ProfileStore

FIELD = "interventions"
Interventions = Annotated[Any, WithJsonSchema({"anyOf": [field_schema(), {"type": "null"}]})]
"""Typed in the served schema; validated by `exchange_of`, whose errors name the path."""


class HeedChatRequest(ChatCompletionRequest):  # type: ignore[misc]
    """`ChatCompletionRequest` with `interventions`."""

    interventions: Interventions = None


class HeedCompletionRequest(CompletionRequest):  # type: ignore[misc]
    """`CompletionRequest` with `interventions`."""

    interventions: Interventions = None


class HeedResponsesRequest(ResponsesRequest):  # type: ignore[misc]
    """`ResponsesRequest` with `interventions`."""

    interventions: Interventions = None


class HeedMessagesRequest(AnthropicMessagesRequest):  # type: ignore[misc]
    """`AnthropicMessagesRequest` with `interventions`."""

    interventions: Interventions = None


HeedRequest = HeedChatRequest | HeedCompletionRequest | HeedResponsesRequest | HeedMessagesRequest
_EXCLUDING = ("use_beam_search", "background")
"""Fields of which each, where it is set, asks for something that cannot carry interventions."""


def exchange_of(
    request: HeedRequest,
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
    taken = reserved_path(
        {"vllm_xargs": getattr(request, "vllm_xargs", None), **(request.model_extra or {})}
    )
    if taken is not None:
        if metrics is not None:
            metrics.rejected("reserved")
        raise reserved(taken)
    raw: Any = request.interventions
    # vLLM hands the request on to handlers that know nothing of the field.
    request.interventions = None
    loaded = profiles.loaded
    together = raw
    try:
        named = take_profile(request, is_served, loaded)
        if named is not None and (raw is None or isinstance(raw, list)):
            together = [*(raw or []), named]
        exchange = exchange_from(together, loaded)
    except InterventionError as error:
        if metrics is not None:
            metrics.rejected(error.reason, _named_methods(together))
        raise refused(error) from error
    if exchange is None:
        return None
    exchange.asked = bool(raw)
    excluding = next((name for name in _EXCLUDING if getattr(request, name, False)), None)
    if excluding is not None and exchange.source == "default":
        exchange.skipped = f"{excluding} cannot carry interventions"
    elif excluding is not None and exchange.methods:
        if metrics is not None:
            metrics.rejected("composition", [method.method for method in exchange.methods])
        raise RefusedError(
            f"interventions cannot be combined with {excluding}: send one of them", excluding
        )
    return exchange


def exchange_from(raw: Any, loaded: Loaded) -> Exchange | None:
    """What a list of interventions says; None where it is missing and the server has no defaults.

    Raises:
        InterventionError: it is malformed, or asks for a profile that cannot be had.
    """
    if raw is None:
        return Exchange(loaded.defaults, "default", asked=False) if loaded.defaults else None
    methods = parse(merged(raw, loaded.profiles, loaded.refused))
    return Exchange(methods, "request", asked=bool(raw))


def _named_methods(raw: Any) -> list[object]:
    # A refused list may be anything; only its first few names count.
    if not isinstance(raw, list):
        return []
    names = [item.get("method") for item in raw[:8] if isinstance(item, dict)]
    return [name for name in names if isinstance(name, str)]
