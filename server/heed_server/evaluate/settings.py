"""The settings that are compared, out of `--interventions`."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from heed_interventions.errors import InterventionError, join_path
from heed_interventions.parse import parse_one
from heed_interventions.registry import METHODS
from heed_server.profiles.merge import names_profile
from heed_server.scoring.calls import PLAIN, Setting
from heed_server.scoring.errors import ScoringError

NONE = "none"
"""The name of the setting that is compared with: no interventions."""

Named = tuple[str, Setting]

_NAMED = re.compile(r"([^\[{=]+)=(?=\s*\[)")


def settings_of(given: Sequence[Sequence[Named]]) -> dict[str, Setting]:
    """By name, the plain one first.

    Raises:
        ScoringError: two have the same name.
    """
    found: dict[str, Setting] = {NONE: PLAIN}
    for name, setting in (each for named in given for each in named):
        if name in found:
            raise ScoringError(f"two settings would both be called {name!r}: name them apart")
        found[name] = setting
    return found


def named_settings(text: str) -> list[Named]:
    """One value of `--interventions`.

    text: a list of interventions in JSON, with `NAME=` before it or not, an object of such lists by
        name, or a file of either. A list without a name is called by what is in it, one in a file by
        the file.

    Raises:
        ScoringError: it cannot be used.
    """
    found = list(_named(text))
    for name, value in found:
        _check(name, value)
    return found


def uses_spans_of_items(setting: Setting) -> bool:
    """Whether every item has to say what is to be emphasised."""
    return any(each["method"] == "emphasis" and "spans" not in each for each in setting)


def _named(text: str) -> Iterator[tuple[str, Any]]:
    name = None
    if found := _NAMED.match(text):
        name, text = found[1].strip(), text[found.end() :]
    source = "--interventions"
    if not text.lstrip().startswith(("[", "{")):
        source, name = text, Path(text).stem
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ScoringError(f"--interventions: {error}") from error
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ScoringError(f"{source}: not valid JSON: {error}") from error
    if isinstance(value, Mapping) and "method" not in value:
        yield from value.items()
    else:
        yield name or _description(value), value


def _description(value: Any) -> str:
    """The methods of a list with what is said of them; of another value, the value."""
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        return json.dumps(value)
    return " + ".join(
        " ".join(
            str(said) if field == "method" else f"{field}={json.dumps(said)}".replace('"', "")
            for field, said in each.items()
        )
        for each in value
    )


def _check(name: str, value: Any) -> None:
    """As far as that goes without a model. Profiles are the server's to know."""
    if not isinstance(value, list) or not value:
        raise ScoringError(f"{name}: interventions are a list that is not empty")
    for index, each in enumerate(value):
        if names_profile(each):
            continue
        method = each.get("method") if isinstance(each, Mapping) else None
        if isinstance(method, str) and method in METHODS:
            each = {**METHODS[method].of_the_prompt, **each}
        try:
            parse_one(each, join_path("interventions", index))
        except InterventionError as error:
            raise ScoringError(f"{name}: {error.param}: {error}") from error
