"""Edits as plain values (dict, list, str, int, float, bool) that JSON and msgpack carry.

    {"kind": "key_bias", "on": ["3f", "0"], "rows": [0, 2147483647], "keys": [[0, 1]], "bias": 0.5,
     "source": 0}

Head masks are hexadecimal strings, one per layer, because they may exceed 64 bits. Trailing keys
are `{"first": 3, "window": 16}` in place of the list of ranges, found keys are "found", vectors are
base64 of their bytes, and a gate is an object of its fields.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from heed_kernels.checks import check_edit
from heed_kernels.edits import (
    Edit,
    FindKeys,
    FoundKeys,
    Gate,
    HeadGain,
    HeadMix,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    KeySet,
    MassTransfer,
    ObserveColumns,
    ObserveMass,
    Rows,
    TrailingKeys,
    VisibleKeys,
    VisibleRanges,
)
from heed_kernels.errors import EditError

_KINDS: dict[str, type[Edit]] = {
    "key_bias": KeyBias,
    "key_scale": KeyScale,
    "visible_keys": VisibleKeys,
    "visible_ranges": VisibleRanges,
    "mass_transfer": MassTransfer,
    "head_gain": HeadGain,
    "head_mix": HeadMix,
    "observe_columns": ObserveColumns,
    "observe_mass": ObserveMass,
    "find_keys": FindKeys,
}
_FIELDS = {kind: tuple(field.name for field in fields(cls)) for kind, cls in _KINDS.items()}
_GATE = tuple(field.name for field in fields(Gate))
_RANGES = ("destination", "protected", "numerator", "denominator")
_NAMES = {cls: name for name, cls in _KINDS.items()}


def to_wire(edits: Sequence[Edit]) -> list[dict[str, Any]]:
    """Plain values for `edits`, in their order."""
    return [_encode_edit(edit) for edit in edits]


def from_wire(items: object) -> list[Edit]:
    """The exact inverse of `to_wire`. Raises `EditError` for anything malformed."""
    if not isinstance(items, (list, tuple)):
        raise EditError(f"edits must be a list, not {type(items).__name__}")
    return [_decode_edit(item) for item in items]


def _encode_edit(edit: Edit) -> dict[str, Any]:
    kind = _NAMES[type(edit)]
    item: dict[str, Any] = {"kind": kind}
    for name in _FIELDS[kind]:
        item[name] = _encode(getattr(edit, name))
    return item


def _encode(value: Any) -> Any:
    match value:
        case HeadSet():
            return [format(mask, "x") for mask in value.masks]
        case Rows():
            return [value.start, value.end]
        case KeyRanges():
            return [[start, end] for start, end in value.ranges]
        case TrailingKeys():
            return {"first": value.first, "window": value.window}
        case FoundKeys():
            return "found"
        case Gate():
            return {name: _encode(getattr(value, name)) for name in _GATE}
        case bytes():
            return base64.b64encode(value).decode()
        case tuple():
            return [list(part) for part in value]
    return value


def _decode_edit(item: object) -> Edit:
    if not isinstance(item, dict):
        raise EditError(f"an edit must be an object, not {type(item).__name__}")
    kind = item.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise EditError(f"unknown kind of edit {kind!r}; known are {', '.join(_KINDS)}")
    expected = _FIELDS[kind]
    if set(item) != {"kind", *expected}:
        raise EditError(f"a {kind} has the fields {', '.join(expected)}, not {sorted(item)}")
    values = {name: item[name] for name in expected}
    for name, value in values.items():
        values[name] = _decode(name, value)
    edit = _KINDS[kind](**values)
    check_edit(edit)
    return edit


def _decode(name: str, value: object) -> Any:
    match name:
        case "on":
            return _decode_heads(value)
        case "rows":
            return Rows(*_pair(value, name))
        case "keys":
            return _decode_keys(value)
        case "sources":
            return FoundKeys() if value == "found" else _decode_ranges(value, name)
        case "gate":
            return _decode_gate(value)
        case "vectors":
            return _decode_bytes(value)
        case "ranges":
            return tuple(_integers(part, "visible range", 3) for part in _list(value, name))
    return _decode_ranges(value, name) if name in _RANGES else value


def _decode_gate(value: object) -> Gate:
    if not isinstance(value, dict) or set(value) != set(_GATE):
        raise EditError(f"a gate has the fields {', '.join(_GATE)}, not {value!r}")
    return Gate(**{name: _decode(name, part) for name, part in value.items()})


def _decode_bytes(value: object) -> bytes:
    try:
        return base64.b64decode(value, validate=True)  # type: ignore[arg-type]
    except (TypeError, ValueError, binascii.Error) as error:
        raise EditError(f"vectors are not base64: {error}") from error


def _decode_heads(masks: object) -> HeadSet:
    if not isinstance(masks, (list, tuple)):
        raise EditError("on must be a list of hexadecimal strings, one per layer")
    decoded = []
    for mask in masks:
        # int() alone would also take "0x3f", " 3f", "+3f" and "3_f".
        if not isinstance(mask, str) or not mask or set(mask) - set("0123456789abcdef"):
            raise EditError(f"head mask {mask!r} is not a hexadecimal string")
        decoded.append(int(mask, 16))
    return HeadSet(tuple(decoded))


def _decode_keys(keys: object) -> KeySet:
    if isinstance(keys, dict):
        if set(keys) != {"first", "window"}:
            raise EditError(f"trailing keys have the fields first, window, not {sorted(keys)}")
        return TrailingKeys(keys["first"], keys["window"])
    return _decode_ranges(keys, "keys")


def _decode_ranges(value: object, name: str) -> KeyRanges:
    return KeyRanges(tuple(_pair(part, f"a range of {name}") for part in _list(value, name)))


def _list(value: object, name: str) -> Sequence[object]:
    if not isinstance(value, (list, tuple)):
        raise EditError(f"{name} must be a list, not {value!r}")
    return value


def _pair(value: object, name: str) -> tuple[int, int]:
    first, second = _integers(value, name, 2)
    return first, second


def _integers(value: object, name: str, count: int) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise EditError(f"{name} must be a list of {count} integers, not {value!r}")
    return tuple(value)
