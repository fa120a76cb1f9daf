"""Heed's own settings, which travel to every API process in environment variables."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from heed_interventions.errors import InterventionError
from heed_interventions.method import Method
from heed_interventions.parse import parse

DEFAULTS_VARIABLE = "HEED_DEFAULT_INTERVENTIONS"
PRIVILEGED_VARIABLE = "HEED_ALLOW_PRIVILEGED_INTERVENTIONS"
STREAMING_VARIABLE = "HEED_MAX_STREAMING_LENGTH"


class SettingsError(ValueError):
    """A setting that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Settings:
    """What `heed serve` was asked for besides vLLM's own flags.

    default_interventions: applied to chat and completion requests whose `interventions` field is
        missing or null.
    allow_privileged: whether methods that aim past a model's training are served.
    max_streaming_length: tokens of prompt and answer of requests whose positions roll; None: the
        model's context, as for all others.
    """

    default_interventions: tuple[Method, ...] = ()
    allow_privileged: bool = False
    max_streaming_length: int | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Read the variables that the launcher sets.

        Raises:
            SettingsError: a file that cannot be read or that holds no valid interventions, or a
                length that is no number.
        """
        path = environment.get(DEFAULTS_VARIABLE)
        return cls(
            default_interventions=read_interventions(Path(path)) if path else (),
            allow_privileged=environment.get(PRIVILEGED_VARIABLE) == "1",
            max_streaming_length=_length(environment.get(STREAMING_VARIABLE)),
        )


def _length(value: str | None) -> int | None:
    if not value:
        return None
    if not value.isdecimal():
        raise SettingsError(f"{STREAMING_VARIABLE} must be a number of tokens, not {value!r}")
    return int(value)


def read_interventions(path: Path) -> tuple[Method, ...]:
    """Interventions out of a JSON file: a list, as in a request.

    Raises:
        SettingsError: naming the file and what is wrong in it.
    """
    try:
        return tuple(parse(json.loads(path.read_text(encoding="utf-8"))))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: not valid JSON: {error}") from error
    except InterventionError as error:
        raise SettingsError(f"{path}: {error.param}: {error}") from error
