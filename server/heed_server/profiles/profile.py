"""What stands in a profile, and how one is read from its directory."""

import json
import math
import re
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors import SafetensorError, safe_open

from heed_interventions.errors import quote
from heed_server.profiles.identity import ModelIdentity

SCHEMA = 1
DOCUMENT = "profile.json"
TENSORS = "tensors.safetensors"
NAME_RULE = "a letter or digit, then at most 63 letters, digits, dots, dashes and underscores"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LARGEST_DOCUMENT = 16 << 20


class ProfileError(Exception):
    """A profile that cannot be used; the message says why."""


class Profile(BaseModel):
    """`profile.json`.

    parameters: of the method, as a request would write them; a request's own win.
    calibration: how they were found. evaluation: what they do on held-out items.
    tensors: shapes of what `tensors.safetensors` holds, by name; no such file where empty.
    heed: version of Heed that wrote it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)

    schema_version: Literal[1] = Field(alias="schema")
    name: str
    method: str
    model: ModelIdentity
    parameters: dict[str, JsonValue]
    calibration: dict[str, JsonValue] = {}
    evaluation: dict[str, JsonValue] = {}
    tensors: dict[str, list[int]] = {}
    heed: str


def is_profile_name(name: object) -> bool:
    """Whether it is a possible name (`NAME_RULE`), which no path is."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def read_profile(root: Path, name: str) -> Profile:
    """The profile in the directory `root/name`, as far as it can be checked without a model.

    Raises:
        ProfileError: it is not there, leads out of `root`, is damaged, or has a newer schema.
    """
    if not is_profile_name(name):
        raise ProfileError(f"{quote(name)} is no name of a profile: {NAME_RULE}")
    profile = _profile(_document(_inside(root, name, DOCUMENT)))
    if profile.name != name:
        raise ProfileError(f"{DOCUMENT} names itself {quote(profile.name)}")
    if profile.tensors or (root / name / TENSORS).exists():
        _check_tensors(_inside(root, name, TENSORS), profile.tensors)
    return profile


def _inside(root: Path, name: str, file: str) -> Path:
    path = (root / name / file).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ProfileError(f"{file} lies outside of the profiles directory")
    if not path.is_file():
        raise ProfileError(f"there is no {file}")
    return path


def _document(path: Path) -> Any:
    try:
        if path.stat().st_size > _LARGEST_DOCUMENT:
            raise ProfileError(f"{DOCUMENT} is larger than {_LARGEST_DOCUMENT >> 20} MiB")
        text = path.read_text(encoding="utf-8")
        found = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        # Half of a surrogate pair can stand in an escape, and could not be sent to anyone.
        json.dumps(found, ensure_ascii=False).encode()
    except OSError as error:
        raise ProfileError(f"{DOCUMENT} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{DOCUMENT} is not valid JSON: {error}") from error
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large a number")
    return value


def _profile(document: Any) -> Profile:
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema is not None and type(schema) is not int:
        raise ProfileError(f"{DOCUMENT}: schema: it must be a number, not {quote(schema)}")
    if schema is not None and schema > SCHEMA:
        raise ProfileError(
            f"it has schema {quote(schema)}, and this version of Heed reads {SCHEMA}: it was made "
            "by a newer one"
        )
    try:
        return Profile.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ProfileError(f"{DOCUMENT}: {where}: {first['msg']}") from error


def _check_tensors(path: Path, shapes: dict[str, list[int]]) -> None:
    # Opening reads the header alone, and refuses a file that is shorter than it says.
    try:
        with safe_open(path, framework="numpy") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ProfileError(f"{TENSORS} is damaged: {error}") from error
    if found != shapes:
        raise ProfileError(f"{TENSORS} does not hold the tensors that {DOCUMENT} lists")
