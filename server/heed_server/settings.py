"""Heed's own settings, which travel to every API process in environment variables."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heed_interventions.errors import InterventionError
from heed_interventions.parse import parse, parse_one
from heed_server.profiles.merge import names_profile

DEFAULTS_VARIABLE = "HEED_DEFAULT_INTERVENTIONS"
PRIVILEGED_VARIABLE = "HEED_ALLOW_PRIVILEGED_INTERVENTIONS"
PROFILES_VARIABLE = "HEED_PROFILES"
STREAMING_VARIABLE = "HEED_MAX_STREAMING_LENGTH"


class SettingsError(ValueError):
    """A setting that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Settings:
    """What `heed serve` was asked for besides vLLM's own flags.

    default_interventions: applied to chat and completion requests whose `interventions` field is
        missing or null; as written, because their profiles are not read yet.
    profiles: directory of profiles, if there is one.
    allow_privileged: whether methods that aim past a model's training are served.
    max_streaming_length: tokens of prompt and answer of requests whose positions roll; None: the
        model's context, as for all others.
    """

    default_interventions: tuple[Any, ...] = ()
    profiles: Path | None = None
    allow_privileged: bool = False
    max_streaming_length: int | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Read the variables that the launcher sets.

        Raises:
            SettingsError: a file that cannot be read or that holds no valid interventions, a
                directory that is none, or a length that is no number.
        """
        path = environment.get(DEFAULTS_VARIABLE)
        profiles = environment.get(PROFILES_VARIABLE)
        return cls(
            default_interventions=read_interventions(Path(path)) if path else (),
            profiles=profiles_directory(Path(profiles)) if profiles else None,
            allow_privileged=environment.get(PRIVILEGED_VARIABLE) == "1",
            max_streaming_length=_length(environment.get(STREAMING_VARIABLE)),
        )


def _length(value: str | None) -> int | None:
    if not value:
        return None
    if not value.isdecimal():
        raise SettingsError(f"{STREAMING_VARIABLE} must be a number of tokens, not {value!r}")
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
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        _check(raw)
        return tuple(raw)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: not valid JSON: {error}") from error
    except InterventionError as error:
        raise SettingsError(f"{path}: {error.param}: {error}") from error


def _check(raw: Any) -> None:
    if not isinstance(raw, list) or not any(names_profile(item) for item in raw):
        parse(raw)
        return
    for index, item in enumerate(raw):
        if not names_profile(item):
            parse_one(item, f"interventions.{index}")
