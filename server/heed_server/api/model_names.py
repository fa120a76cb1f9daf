"""Profiles asked for by the model's name, `heed-tiny@sentiment`, by clients that can send no field."""

from collections.abc import Callable
from typing import Any

from heed_interventions.errors import InterventionError
from heed_server.profiles.store import Loaded

SEPARATOR = "@"
IsServed = Callable[[str], bool]


def take_profile(request: Any, is_served: IsServed, loaded: Loaded) -> dict[str, str] | None:
    """The intervention that the request's model name asks for; the name is cut down to the model's.

    request: vLLM's body, with `model`. A name that is the model's own, or not of this form, stays.

    Raises:
        InterventionError: the model is served, and has no such profile (404), or one that cannot
            be used or needs more than its name (400).
    """
    whole: str | None = request.model
    if not whole or is_served(whole):
        return None
    model, separator, name = whole.rpartition(SEPARATOR)
    if not separator or not is_served(model):
        return None
    request.model = model
    if name in loaded.complete:
        return {"method": loaded.profiles[name].method, "profile": name}
    if name in loaded.refused:
        raise _error(f"profile {name} cannot be used: {loaded.refused[name]}", 400)
    if name in loaded.profiles:
        method = loaded.profiles[name].method
        raise _error(
            f"profile {name} needs parameters beside it: ask for it in `interventions`, with "
            f'"method": "{method}"',
            400,
        )
    known = ", ".join(served_names(model, loaded)) or "no model with a profile"
    raise _error(f"the model {whole[:80]!r} does not exist; there is {known}", 404)


def served_names(model: str, loaded: Loaded) -> list[str]:
    """The names under which `model` can be asked for with a profile."""
    return [f"{model}{SEPARATOR}{name}" for name in sorted(loaded.complete)]


def _error(message: str, status: int) -> InterventionError:
    return InterventionError(message, "model", reason="profile", status=status)
