"""From the field `interventions`, as JSON gave it, to methods, or to one error."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from heed_interventions.errors import REASONS, InterventionError, Reason, join_path, quote
from heed_interventions.method import Method
from heed_interventions.registry import METHODS, MOST_INTERVENTIONS
from heed_interventions.spans import SPAN_FIELDS

_SUBJECT = re.compile("^[A-Z][a-z]+ should")
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def parse(raw: object, path: str = "interventions") -> list[Method]:
    """The interventions of a request, in its order, checked as far as that goes without a model.

    raw: any JSON value; a missing or null field is the caller's business. path: the field's name.
    Raises `InterventionError` and nothing else, in time linear in the part that is looked at.
    """
    if not isinstance(raw, list):
        raise InterventionError(
            f"{path} must be a list of interventions, not {quote(raw)}", path, reason="wrong_type"
        )
    if len(raw) > MOST_INTERVENTIONS:
        raise InterventionError(
            f"{len(raw)} interventions are too many: at most {MOST_INTERVENTIONS} are allowed",
            path,
            reason="too_many",
        )
    return [parse_one(item, join_path(path, index)) for index, item in enumerate(raw)]


def parse_one(item: object, path: str) -> Method:
    """One intervention. Raises `InterventionError` and nothing else."""
    if not isinstance(item, dict):
        raise InterventionError(
            f"an intervention must be an object, not {quote(item)}", path, reason="wrong_type"
        )
    method = _method(item, path)
    name = method.name()
    for key in item:
        if key not in method.fields():
            raise InterventionError(
                f"{quote(key)} is not a field of {name}{_hint(key, method.fields())}; it has "
                f"{', '.join(method.fields())}",
                join_path(path, key),
                reason="unknown_field",
                method=name,
            )
    try:
        return method.model_validate(item)
    except ValidationError as error:
        raise _translate(error, method, path) from None


def _method(item: dict[Any, Any], path: str) -> type[Method]:
    known = f"known methods are {', '.join(METHODS)}"
    path = join_path(path, "method")
    if "method" not in item:
        raise InterventionError(
            f"an intervention needs a `method`; {known}", path, reason="missing_field"
        )
    name = item["method"]
    if not isinstance(name, str):
        raise InterventionError(
            f"`method` must be a string, not {quote(name)}; {known}", path, reason="wrong_type"
        )
    if name not in METHODS:
        raise InterventionError(
            f"unknown method {quote(name)}{_hint(name, METHODS)}; {known}",
            path,
            reason="unknown_method",
        )
    return METHODS[name]


def _hint(name: object, known: Iterable[str]) -> str:
    # Long names are no slips of the pen, and comparing them is slow.
    if not isinstance(name, str) or len(name) > 40:
        return ""
    close = get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _translate(error: ValidationError, method: type[Method], path: str) -> InterventionError:
    detail = error.errors(include_url=False)[0]
    location = [part for part in detail["loc"] if not is_mark(part)]
    location += [part for part in [detail.get("ctx", {}).get("field")] if part is not None]
    message = _message(detail, location, method)
    return InterventionError(
        message, join_path(path, *location), reason=_reason(detail, location), method=method.name()
    )


def is_mark(part: int | str) -> bool:
    """Parts that pydantic adds to a path: tags of a union, and "this is about the key"."""
    return isinstance(part, str) and (part == "[key]" or (part[:1] == "<" and part[-1:] == ">"))


def _message(detail: ErrorDetails, location: Sequence[int | str], method: type[Method]) -> str:
    name = join_path(*location) or "the intervention"
    kind = detail["type"]
    if kind == "missing":
        return f"{name} is missing; {method.name()} needs it"
    if kind == "extra_forbidden" and location[-1] in SPAN_FIELDS:
        return (
            f"{name}: a span has either a text (and its occurrence), or start and end, or an image"
        )
    if kind == "extra_forbidden":
        return (
            f"{name} is not a field of a span; it has either text and occurrence, or start and end, "
            "or image"
        )
    if "field" in detail.get("ctx", {}):
        # Found by looking at the intervention as a whole, which is no value to quote.
        return f"{name} {detail['msg']}"
    if kind in REASONS:
        return f"{name} {detail['msg']}, not {quote(detail['input'])}"
    if kind == "string_pattern_mismatch":
        return f"{name}: {quote(detail['input'])} is not a layer id"
    if kind in ("too_short", "string_too_short") and not detail["input"]:
        return f"{name} must not be empty"
    allowed = _bounds(location, method) or _SUBJECT.sub("must", detail["msg"])
    return f"{name} {allowed}, not {quote(detail['input'])}"


def _bounds(location: Sequence[int | str], method: type[Method]) -> str | None:
    """What a field of numbers allows, in words; None for other fields."""
    field = method.fields()[str(location[0])] if len(location) == 1 else None
    if field is None or field.annotation not in (int, float):
        return None
    words = [
        f"{word} {getattr(bound, name)}"
        for bound in field.metadata
        for name, word in _BOUNDS.items()
        if hasattr(bound, name)
    ]
    kind = "an integer" if field.annotation is int else "a finite number"
    return f"must be {kind} {' and '.join(words)}"


def _reason(detail: ErrorDetails, location: Sequence[int | str]) -> Reason:
    kind = detail["type"]
    for reason in REASONS:
        if kind == reason:
            return reason
    if kind == "missing":
        return "missing_field"
    if kind == "extra_forbidden":
        return "exclusive" if location[-1] in SPAN_FIELDS else "unknown_field"
    if kind == "string_pattern_mismatch":
        return "layer"
    if kind == "literal_error":
        return "out_of_bounds" if isinstance(detail["input"], str) else "wrong_type"
    if kind.endswith("_type"):
        # An integer too large for a float is refused as if it were no number.
        huge = kind == "float_type" and type(detail["input"]) is int
        return "out_of_bounds" if huge else "wrong_type"
    if kind in ("string_unicode", "int_parsing_size"):
        return "malformed"
    return "out_of_bounds"
