"""Edits as plain values (dict, list, str, int, float, bool) that JSON and msgpack carry.

    {"kind": "key_bias", "on": ["3f", "0"], "rows": [0, 2147483647], "keys": [[0, 1]], "bias": 0.5,
     "source": 0}

Head masks are hexadecimal strings, one per layer, because they may exceed 64 bits. Trailing keys
are `{"first": 3, "window": 16}` in place of the list of ranges.
"""

from collections.abc import Sequence
from typing import Any

from heed_kernels.checks import check_edit
from heed_kernels.edits import (
    Edit,
    HeadGain,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    KeySet,
    Rows,
    TrailingKeys,
    VisibleKeys,
)
from heed_kernels.errors import EditError

_FIELDS = {
    "key_bias": ("on", "rows", "keys", "bias", "source"),
    "key_scale": ("on", "rows", "keys", "scale", "absolute", "source"),
    "visible_keys": ("sinks", "window", "rolling", "source"),
    "head_gain": ("on", "rows", "gain", "source"),
}
_KINDS: dict[str, type[Edit]] = {
    "key_bias": KeyBias,
    "key_scale": KeyScale,
    "visible_keys": VisibleKeys,
    "head_gain": HeadGain,
}
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
        value = getattr(edit, name)
        if isinstance(value, HeadSet):
            value = [format(mask, "x") for mask in value.masks]
        elif isinstance(value, Rows):
            value = [value.start, value.end]
        elif isinstance(value, KeyRanges):
            value = [[start, end] for start, end in value.ranges]
        elif isinstance(value, TrailingKeys):
            value = {"first": value.first, "window": value.window}
        item[name] = value
    return item


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
    if "on" in values:
        values["on"] = _decode_heads(values["on"])
    if "rows" in values:
        values["rows"] = Rows(*_pair(values["rows"], "rows"))
    if "keys" in values:
        values["keys"] = _decode_keys(values["keys"])
    edit = _KINDS[kind](**values)
    check_edit(edit)
    return edit


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
    if not isinstance(keys, (list, tuple)):
        raise EditError("keys must be a list of ranges or an object with first and window")
    return KeyRanges(tuple(_pair(pair, "key range") for pair in keys))


def _pair(value: object, name: str) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise EditError(f"{name} must be a list of two integers, not {value!r}")
    return value[0], value[1]
