"""Heed's own settings, which travel to every API process in environment variables."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from heed_interventions.errors import InterventionError
from heed_interventions.parse import parse, parse_one
from heed_interventions.policy import EVERYTHING, Policy, PolicyError, parse_policy
from heed_server.profiles.merge import names_profile

T = TypeVar("T")

DEFAULTS_VARIABLE = "HEED_DEFAULT_INTERVENTIONS"
POLICY_VARIABLE = "HEED_INTERVENTION_POLICY"
PRIVILEGED_VARIABLE = "HEED_ALLOW_PRIVILEGED_INTERVENTIONS"
PROFILES_VARIABLE = "HEED_PROFILES"
STREAMING_VARIABLE = "HEED_MAX_STREAMING_LENGTH"
BODY_VARIABLE = "HEED_MAX_BODY_BYTES"
OPEN_VARIABLE = "HEED_MAX_OPEN_REQUESTS"
PLAYGROUND_VARIABLE = "HEED_PLAYGROUND"
ATTENTION_VARIABLE = "HEED_ATTENTION_DIAGNOSTICS"

DEFAULT_BODY_BYTES = 64 << 20
_SWITCH = {
    word: value
    for value, words in ((True, "1 true yes on"), (False, "0 false no off"))
    for word in words.split()
}
"""What a variable may say that is on or off, in any case."""


class SettingsError(ValueError):
    """A setting that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Settings:
    """What `heed serve` was asked for besides vLLM's own flags.

    default_interventions: applied to chat and completion requests whose `interventions` field is
        missing or null; as written, because their profiles are not read yet.
    profiles: directory of profiles, if there is one.
    allow_privileged: whether methods that aim past a model's training are served.
    policy: what requests may ask for at all; their defaults too.
    max_streaming_length: tokens of prompt and answer of requests whose positions roll; None: the
        model's context, as for all others.
    max_body_bytes: largest body of a request.
    max_open_requests: that one API process may have open; None: any number.
    playground: whether there is a page at `/`.
    attention: whether `POST /v1/attention` is there.
    """

    default_interventions: tuple[Any, ...] = ()
    profiles: Path | None = None
    allow_privileged: bool = False
    policy: Policy = EVERYTHING
    max_streaming_length: int | None = None
    max_body_bytes: int = DEFAULT_BODY_BYTES
    max_open_requests: int | None = None
    playground: bool = True
    attention: bool = True

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Read the variables that the launcher sets; an empty one counts as not set.

        Raises:
            SettingsError: a file that cannot be read or that holds no valid interventions or policy,
                a directory that is none, a length that is no positive number, or a switch that is
                neither on nor off.
        """
        path = environment.get(DEFAULTS_VARIABLE)
        profiles = environment.get(PROFILES_VARIABLE)
        policy = environment.get(POLICY_VARIABLE)
        return cls(
            default_interventions=read_interventions(Path(path)) if path else (),
            profiles=profiles_directory(Path(profiles)) if profiles else None,
            allow_privileged=_switch(environment, PRIVILEGED_VARIABLE, default=False),
            policy=read_policy(Path(policy)) if policy else EVERYTHING,
            max_streaming_length=_number(environment, STREAMING_VARIABLE, "tokens", None),
            max_body_bytes=_number(environment, BODY_VARIABLE, "bytes", DEFAULT_BODY_BYTES),
            max_open_requests=_number(environment, OPEN_VARIABLE, "requests", None),
            playground=_switch(environment, PLAYGROUND_VARIABLE, default=True),
            attention=_switch(environment, ATTENTION_VARIABLE, default=True),
        )


def _switch(environment: Mapping[str, str], variable: str, *, default: bool) -> bool:
    value = environment.get(variable)
    if not value:
        return default
    if value.lower() not in _SWITCH:
        raise SettingsError(f"{variable} must be one of {', '.join(_SWITCH)}, not {value[:80]!r}")
    return _SWITCH[value.lower()]


def _number(environment: Mapping[str, str], variable: str, unit: str, default: T) -> int | T:
    value = environment.get(variable)
    if not value:
        return default
    if not (value.isascii() and value.isdecimal() and len(value) < 19 and int(value)):
        raise SettingsError(f"{variable} must be a positive number of {unit}, not {value[:80]!r}")
    return int(value)


def profiles_directory(path: Path) -> Path:
    """The directory of profiles. Raises `SettingsError` where there is none."""
    if not path.is_dir():
        raise SettingsError(f"{path}: the directory of profiles is not there")
    return path


def read_interventions(path: Path) -> tuple[Any, ...]:
    """Interventions out of a JSON file: a list, as in a request.

    Those that name a profile are checked when the profiles are read.

    Raises:
        SettingsError: naming the file and what is wrong in it.
    """
    raw = _read_json(path)
    try:
        _check(raw)
    except InterventionError as error:
        raise SettingsError(f"{path}: {error.param}: {error}") from error
    return tuple(raw)


def read_policy(path: Path) -> Policy:
    """A policy out of a JSON file.

    Raises:
        SettingsError: naming the file and what is wrong in it.
    """
    raw = _read_json(path)
    try:
        return parse_policy(raw)
    except PolicyError as error:
        raise SettingsError(f"{path}: {error}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once_each)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: not valid JSON: {error}") from error


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of a name that stands twice Python takes the last, and a bound would be lost in silence.
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice[:80]!r} stands there twice")
    return dict(pairs)


def _check(raw: Any) -> None:
    if not isinstance(raw, list) or not any(names_profile(item) for item in raw):
        parse(raw)
        return
    for index, item in enumerate(raw):
        if not names_profile(item):
            parse_one(item, f"interventions.{index}")
