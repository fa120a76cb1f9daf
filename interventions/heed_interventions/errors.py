"""The one exception that users of this package see, and how offending values are quoted in it."""

from typing import Literal, get_args

Reason = Literal[
    "malformed",
    "too_many",
    "unknown_method",
    "unknown_field",
    "missing_field",
    "wrong_type",
    "out_of_bounds",
    "exclusive",
    "layer",
    "head",
    "span",
    "vision",
    "context",
    "composition",
    "privileged",
    "policy",
    "profile",
    "unsupported",
]
REASONS: tuple[Reason, ...] = get_args(Reason)
"""Every label that `InterventionError.reason` can have: a bounded set, fit for a metric."""

_QUOTED = 60


class InterventionError(Exception):
    """An intervention that cannot be used, in words for the person who wrote it.

    param: the path of the offending value, such as `interventions.0.gamma`.
    status: the HTTP status that says the same: 400, 403 (privileged, or against the policy) or 404 (profile).
    reason: one of `REASONS`.
    method: the method's name where it is a known one.

    Not a `ValueError`, so that pydantic never takes it for a failed validation.
    """

    def __init__(
        self,
        message: str,
        param: str,
        *,
        reason: Reason,
        status: int = 400,
        method: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.reason: Reason = reason
        self.status = status
        self.method = method


def quote(value: object) -> str:
    """`value` in at most about 80 printable characters, whatever it is: huge, deep or not text."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        # repr escapes what a response could not carry: control characters and lone surrogates.
        return repr(value) if len(value) <= _QUOTED else f"{value[:_QUOTED]!r}…"
    if isinstance(value, int):
        return (
            str(value) if value.bit_length() <= 64 else f"an integer of {value.bit_length()} bits"
        )
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"a list of length {len(value)}"
    if isinstance(value, dict):
        return f"an object with {len(value)} fields"
    return f"a value of type {type(value).__name__}"


def join_path(*parts: object) -> str:
    """Path of a value inside the request: the parts joined by dots, each printable and short.

    Empty parts are left out: the path of the request itself is empty.
    """
    return ".".join(_path_part(part) for part in parts if part != "")


def _path_part(part: object) -> str:
    text = part if isinstance(part, str) else quote(part)
    if len(text) > _QUOTED:
        text = text[:_QUOTED] + "…"
    return text if text.isprintable() else repr(text)[1:-1]
