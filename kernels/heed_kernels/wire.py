"""Edits as plain values (dict, list, str, int, float, bool) that JSON and msgpack carry.

    {"kind": "key_bias", "on": ["3f", "0"], "rows": [0, 2147483647], "keys": [[0, 1]], "bias": 0.5,
     "source": 0}

Head masks are hexadecimal strings, one per layer, because they may exceed 64 bits. Trailing keys
are `{"first": 3, "window": 16}` in place of the list of ranges, found keys are "found", vectors are
base64 of their bytes, and gates and keys of patches are objects of their fields. An eviction reads

    {"kind": "evict", "score": {"kind": "window", "window": 32, …}, "share": null, "counts": [512, …],
     "most": 512, "again": false, "together": 32, "every_row": false, …}

with an object of its kind and fields for the share too, where there is one.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from heed_kernels.checks import check_edit
from heed_kernels.edits import (
    Edit,
    FindKeys,
    FlagKeys,
    FoundKeys,
    Gate,
    GazeShift,
    HeadChoice,
    HeadGain,
    HeadMix,
    HeadRanking,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    KeySet,
    MassTransfer,
    ObserveColumns,
    ObserveMass,
    PatchKeys,
    Rows,
    TrailingKeys,
    VisibleKeys,
    VisibleRanges,
)
from heed_kernels.errors import EditError
from heed_kernels.evict import (
    ColumnScore,
    DifferenceScore,
    Evict,
    ExpectedScore,
    HeadShare,
    KindShare,
    NormScore,
    QueryShare,
    Score,
    Share,
    WindowScore,
)

_KINDS: dict[str, type[Edit]] = {
    "key_bias": KeyBias,
    "key_scale": KeyScale,
    "visible_keys": VisibleKeys,
    "visible_ranges": VisibleRanges,
    "mass_transfer": MassTransfer,
    "head_gain": HeadGain,
    "head_mix": HeadMix,
    "head_ranking": HeadRanking,
    "head_choice": HeadChoice,
    "gaze_shift": GazeShift,
    "observe_columns": ObserveColumns,
    "observe_mass": ObserveMass,
    "find_keys": FindKeys,
    "flag_keys": FlagKeys,
    "evict": Evict,
}
_SCORES: dict[str, type[Score]] = {
    "window": WindowScore,
    "column": ColumnScore,
    "norm": NormScore,
    "difference": DifferenceScore,
    "expected": ExpectedScore,
}
_SHARES: dict[str, type[Share]] = {"head": HeadShare, "kind": KindShare, "query": QueryShare}
_GATE = tuple(field.name for field in fields(Gate))
_PATCHES = tuple(field.name for field in fields(PatchKeys))
_RANGES = (
    "destination", "protected", "numerator", "denominator", "needed", "beside", "turning", "images",
)  # fmt: skip
_NAMES: dict[type, str] = {
    cls: name for kinds in (_KINDS, _SCORES, _SHARES) for name, cls in kinds.items()
}


def to_wire(edits: Sequence[Edit]) -> list[dict[str, Any]]:
    """Plain values for `edits`, in their order."""
    return [_encode_fields(edit) for edit in edits]


def from_wire(items: object) -> list[Edit]:
    """The exact inverse of `to_wire`. Raises `EditError` for anything malformed."""
    if not isinstance(items, (list, tuple)):
        raise EditError(f"edits must be a list, not {type(items).__name__}")
    return [_decode_edit(item) for item in items]


def _encode_fields(part: Edit | Score | Share) -> dict[str, Any]:
    item: dict[str, Any] = {"kind": _NAMES[type(part)]}
    for field in fields(part):
        item[field.name] = _encode(getattr(part, field.name))
    return item


def _encode(value: Any) -> Any:
    if isinstance(value, Score | Share):
        return _encode_fields(value)
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
        case PatchKeys():
            return {name: _encode(getattr(value, name)) for name in _PATCHES}
        case bytes():
            return base64.b64encode(value).decode()
        case tuple():
            return [list(part) if isinstance(part, tuple) else part for part in value]
    return value


def _decode_edit(item: object) -> Edit:
    edit: Edit = _decode_fields(item, _KINDS, "edit")
    check_edit(edit)
    return edit


def _decode_fields(item: object, kinds: Mapping[str, type], what: str) -> Any:
    """An instance of the class that the item's kind names."""
    if not isinstance(item, dict):
        raise EditError(f"the {what} must be an object, not {type(item).__name__}")
    kind = item.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise EditError(f"unknown kind of {what} {kind!r}; known are {', '.join(kinds)}")
    expected = tuple(field.name for field in fields(kinds[kind]))
    if set(item) != {"kind", *expected}:
        raise EditError(f"a {kind} has the fields {', '.join(expected)}, not {sorted(item)}")
    return kinds[kind](**{name: _decode(name, item[name]) for name in expected})


def _decode(name: str, value: object) -> Any:
    match name:
        case "on":
            return _decode_heads(value)
        case "rows":
            # The rows of a share are a number.
            return value if isinstance(value, int) else Rows(*_pair(value, name))
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
        case "score":
            return _decode_fields(value, _SCORES, "score")
        case "share":
            return None if value is None else _decode_fields(value, _SHARES, "share")
        case "counts" | "far" | "dimensions":
            return tuple(_list(value, name))
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


def _decode_keys(keys: object) -> KeySet | PatchKeys:
    if isinstance(keys, dict) and set(keys) == set(_PATCHES):
        return PatchKeys(**{name: _decode(name, part) for name, part in keys.items()})
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
