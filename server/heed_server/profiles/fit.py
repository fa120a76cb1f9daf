"""Whether a profile can be used on the model being served."""

from collections.abc import Sequence
from typing import Any

from heed_interventions.errors import InterventionError, quote
from heed_interventions.method import Method
from heed_interventions.parse import parse_one
from heed_interventions.registry import METHODS
from heed_interventions.resolve import resolve
from heed_interventions.views import ImageSpan, ModelView, PromptView
from heed_server.profiles.identity import ModelIdentity
from heed_server.profiles.profile import Profile, ProfileError

_STAND_IN_LENGTH = 64
"""Tokens of the prompt that stands in for those of requests."""


def check_fit(profile: Profile, served: ModelIdentity, view: ModelView) -> bool:
    """Check a profile against the model.

    Returns whether it is complete: a request need not write anything beside it.

    Raises:
        ProfileError: it was made for another model, or its parameters cannot be used on this one.
    """
    if not profile.model.same_model(served):
        raise ProfileError(f"it was made for {profile.model}, and this server runs {served}")
    images = (ImageSpan(1, 2),) if view.vision else ()
    item = {"method": profile.method, **profile.parameters}
    missing = _missing(profile, item)
    try:
        method = parse_one(item | missing, "parameters")
        if view.unsupported is None:
            # Which heads and layers there are; permission and length are matters of each request.
            length = min(_STAND_IN_LENGTH, view.max_length, view.longest_step or view.max_length)
            resolve([method], view, PromptView(length, images=images), allow_privileged=True)
    except InterventionError as error:
        raise ProfileError(f"its parameters cannot be used: {error}") from error
    return not missing


def check_adapter(methods: Sequence[Method], adapter: str) -> None:
    """Refuse profiles for a request to a LoRA adapter of the model.

    Heads were found on the model without it, and no fingerprint covers an adapter: used on other
    weights, nothing would fail, and the answers would only get worse.

    Raises:
        InterventionError: naming the first intervention that takes its parameters from a profile.
    """
    for index, method in enumerate(methods):
        if method.profile is not None:
            raise InterventionError(
                f"profile {method.profile} was made for the model without an adapter, and this request "
                f"asks for {quote(adapter)}: write the parameters out to use them there",
                f"interventions.{index}.profile",
                reason="profile",
                method=method.method,
            )


def _missing(profile: Profile, item: dict[str, Any]) -> dict[str, Any]:
    known: type[Method] | None = METHODS.get(profile.method)
    if known is None:
        return {}  # parsing says which methods there are
    return {field: value for field, value in known.of_the_prompt.items() if field not in item}
