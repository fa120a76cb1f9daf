"""What an operator allows: which methods, with which values, and how many first tokens none may weaken."""

import math
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from heed_interventions.errors import InterventionError, join_path, quote
from heed_interventions.method import Method
from heed_interventions.protection import weakens
from heed_interventions.registry import METHODS
from heed_interventions.views import RequestView
from heed_kernels.edits import Edit


class PolicyError(ValueError):
    """A policy that cannot be used; the message names the path of the offending value."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Bounds(_Part):
    """What a parameter may be, in the words of JSON Schema: numbers have a minimum and a maximum, words
    and true and false an enum."""

    minimum: float | None = None
    maximum: float | None = None
    enum: list[str | bool] | None = Field(default=None, min_length=1)

    def allow(self, value: object) -> bool:
        """Whether the parameter may have this value. Null, the method's own choice, is within no bounds."""
        if self.enum is not None:
            return value in self.enum
        return isinstance(value, int | float) and self._least <= value <= self._most

    @property
    def _least(self) -> float:
        return -math.inf if self.minimum is None else self.minimum

    @property
    def _most(self) -> float:
        return math.inf if self.maximum is None else self.maximum

    def as_schema(self) -> dict[str, Any]:
        """The same as JSON Schema."""
        return self.model_dump(mode="json", exclude_none=True)

    def __str__(self) -> str:
        if self.enum is not None:
            return "one of " + ", ".join(quote(value) for value in self.enum)
        least = [] if self.minimum is None else [f"at least {self.minimum:g}"]
        most = [] if self.maximum is None else [f"at most {self.maximum:g}"]
        return " and ".join(least + most)

    @model_validator(mode="after")
    def _allows_something(self) -> Self:
        numbers = self.minimum is not None or self.maximum is not None
        if numbers == (self.enum is not None):
            raise ValueError("bounds have a minimum, a maximum or both, or else an enum")
        if numbers and not self._least <= self._most:
            raise ValueError(f"no number is {self}")
        return self


class Policy(_Part):
    """Checked against every intervention, after profiles and defaults were put in.

    methods: bounds by method and parameter; a method that is missing is not allowed, and without
        `methods` all are. They hold beside the methods' own bounds.
    protect_prefix_tokens: no edit may take weight from the first so many tokens of a prompt, as
        `protection.py` has it.
    """

    methods: dict[str, dict[str, Bounds]] | None = None
    protect_prefix_tokens: int = Field(default=0, ge=0, lt=2**31 - 1)

    def check(self, method: Method, path: str) -> None:
        """Raises `InterventionError` (403) where the method or one of its values is not allowed."""
        reason = self.forbidden(method.name())
        if reason is not None:
            raise _forbidden(method, reason, join_path(path, "method"))
        for name, bounds in self.bounds(method.name()).items():
            value = getattr(method, name)
            if not bounds.allow(value):
                message = f"{name} must be {bounds} under this server's policy, not {quote(value)}"
                raise _forbidden(method, message, join_path(path, name))

    def check_edits(self, method: Method, edits: Sequence[Edit], view: RequestView) -> None:
        """Raises `InterventionError` (403) where the edits may take weight from protected tokens."""
        tokens = min(self.protect_prefix_tokens, view.prompt.length)
        reason = weakens(edits, tokens) if tokens else None
        if reason is not None:
            message = (
                f"this server's policy protects the first {tokens} tokens of the prompt, and "
                f"{method.name()} may take attention from them: {reason}"
            )
            raise _forbidden(method, message, view.path)

    def forbidden(self, method: str) -> str | None:
        """Why no request can have the method; None where one can."""
        if self.methods is None or method in self.methods:
            return None
        allowed = ", ".join(self.methods) or "none"
        return f"this server's policy does not allow {method}; it allows {allowed}"

    def bounds(self, method: str) -> dict[str, Bounds]:
        """Bounds of an allowed method's parameters, by name."""
        return (self.methods or {}).get(method, {})

    def narrowed(self, entry: dict[str, Any]) -> dict[str, Any]:
        """A method's entry in the catalogue, with what the policy leaves of it."""
        reason = self.forbidden(entry["method"])
        if reason is not None:
            return entry | {"available": False, "reason": reason}
        schema = entry["parameters"]
        properties = schema["properties"] | {
            name: schema["properties"][name] | {"allOf": [bounds.as_schema()]}
            for name, bounds in self.bounds(entry["method"]).items()
        }
        return entry | {"parameters": schema | {"properties": properties}}

    @model_validator(mode="after")
    def _names_what_exists(self) -> Self:
        for name, parameters in (self.methods or {}).items():
            if name not in METHODS:
                raise ValueError(f"there is no method {quote(name)}")
            for field, bounds in parameters.items():
                _check_field(METHODS[name], field, bounds)
        return self


EVERYTHING = Policy()
"""The policy of a server that has none."""


def parse_policy(raw: object) -> Policy:
    """A policy out of JSON. Raises `PolicyError`."""
    try:
        return Policy.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = join_path(*first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise PolicyError(f"{where}: {message}" if where else message) from error


def _check_field(method: type[Method], name: str, bounds: Bounds) -> None:
    path = join_path("methods", method.name(), name)
    fields = method.fields()
    if name not in fields:
        raise ValueError(f"{path}: it has no such parameter, but {', '.join(fields)}")
    values = _values(fields[name].annotation) - {NoneType}
    numbers, words = values <= {int, float}, not any(isinstance(value, type) for value in values)
    if not numbers and not words:
        raise ValueError(f"{path}: only numbers, words, and true and false can be bounded")
    if numbers != (bounds.enum is None):
        raise ValueError(f"{path}: {'a number has no enum' if numbers else 'it needs an enum'}")
    unknown = set(bounds.enum or ()) - values
    if unknown:
        raise ValueError(f"{path}: it is never {quote(unknown.pop())}")


def _values(annotation: Any) -> set[Any]:
    """The types that a field takes; of words, and of true and false, the values themselves."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(arguments[0])
    if origin in (Union, UnionType):
        return set().union(*(_values(argument) for argument in arguments))
    if origin is Literal:
        return set(arguments)
    return {True, False} if annotation is bool else {annotation if origin is None else origin}


def _forbidden(method: Method, message: str, path: str) -> InterventionError:
    return InterventionError(message, path, reason="policy", status=403, method=method.name())
