"""Parameters of profiles put into a request's interventions."""

from collections.abc import Iterable, Mapping
from typing import Any

from heed_interventions.errors import InterventionError, join_path, quote
from heed_interventions.method import Method
from heed_interventions.registry import METHODS, MOST_INTERVENTIONS
from heed_server.profiles.profile import NAME_RULE, Profile, is_profile_name


def merged(
    raw: Any,
    profiles: Mapping[str, Profile],
    refused: Mapping[str, str],
    path: str = "interventions",
) -> Any:
    """`raw` with the parameters of every profile that it names; what is written beside one wins.

    A null beside a profile is nothing written.

    raw: the field `interventions`, any JSON value; what is no list of objects is left to the parser.
    refused: why profiles that exist cannot be used, by name.

    Raises:
        InterventionError: a profile that does not exist (404), cannot be used or is another
            method's (400).
    """
    if not isinstance(raw, list) or len(raw) > MOST_INTERVENTIONS:
        return raw
    return [
        _merged_one(item, profiles, refused, join_path(path, index))
        for index, item in enumerate(raw)
    ]


def names_profile(item: object) -> bool:
    """Whether an intervention asks for a profile; its method has to be a known one."""
    if not isinstance(item, dict) or item.get("profile") is None:
        return False
    method = item.get("method")
    return isinstance(method, str) and method in METHODS


def _merged_one(
    item: Any, profiles: Mapping[str, Profile], refused: Mapping[str, str], path: str
) -> Any:
    if not names_profile(item):
        return item
    profile = _profile(item["method"], item["profile"], profiles, refused, path)
    parameters = dict(profile.parameters)
    written = {field: value for field, value in item.items() if value is not None}
    for field in _pushed_out(METHODS[item["method"]], written, parameters):
        parameters.pop(field, None)
    return {**parameters, **written}


def _profile(
    method: str,
    name: object,
    profiles: Mapping[str, Profile],
    refused: Mapping[str, str],
    path: str,
) -> Profile:
    def error(message: str, status: int = 400) -> InterventionError:
        where = join_path(path, "profile")
        return InterventionError(message, where, reason="profile", status=status, method=method)

    if not isinstance(name, str):
        raise error(f"profile must be the name of a profile, not {quote(name)}")
    if not is_profile_name(name):
        raise error(f"{quote(name)} is no name of a profile: {NAME_RULE}")
    if name in refused:
        raise error(f"profile {name} cannot be used: {refused[name]}")
    if name not in profiles:
        known = ", ".join(profiles) or "none"
        raise error(f"there is no profile {name}; this server has: {known}", 404)
    if profiles[name].method != method:
        raise error(f"profile {name} is for {profiles[name].method}, not for {method}")
    return profiles[name]


def _pushed_out(
    method: type[Method], written: Mapping[str, Any], parameters: Mapping[str, Any]
) -> Iterable[str]:
    """Parameters of a profile that cannot stand beside what the request wrote."""
    if any(field in written for field in method.exclusive):
        yield from method.exclusive
    # An object in `heads` names its layers itself.
    if "layers" in written and isinstance(parameters.get("heads"), dict):
        yield "heads"
    if isinstance(written.get("heads"), dict):
        yield "layers"
