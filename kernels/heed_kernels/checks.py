"""What makes an edit well-formed, whatever the model."""

import math

from heed_kernels.edits import (
    OPEN,
    Edit,
    HeadGain,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeySet,
    Rows,
    TrailingKeys,
    VisibleKeys,
)
from heed_kernels.errors import EditError

LARGEST = 1e30
"""Largest magnitude of a bias, factor or gain: products with a logit stay finite in float32 up to it."""


def check_edit(edit: Edit) -> None:
    """Raise `EditError` unless every field of `edit` has its type and is in its range."""
    _integer(edit.source, "source", 0)
    if isinstance(edit, VisibleKeys):
        _integer(edit.sinks, "sinks", 0)
        _integer(edit.window, "window", 1)
        if not isinstance(edit.rolling, bool):
            raise EditError(f"rolling must be true or false, not {edit.rolling!r}")
        return
    _check_heads(edit.on)
    _check_rows(edit.rows)
    if isinstance(edit, HeadGain):
        _number(edit.gain, "gain")
        return
    _check_keys(edit.keys)
    if isinstance(edit, KeyBias):
        _number(edit.bias, "bias")
    else:
        _number(edit.scale, "scale")
        _number(edit.absolute, "absolute")
        if not isinstance(edit.keys, KeyRanges):
            raise EditError("a KeyScale acts on keys at fixed positions only")


def _check_heads(on: HeadSet) -> None:
    for mask in on.masks:
        _integer(mask, "head mask", 0, None)


def _check_rows(rows: Rows) -> None:
    _integer(rows.start, "rows.start", 0)
    _integer(rows.end, "rows.end", 0)
    if rows.end < rows.start:
        raise EditError(f"rows [{rows.start}, {rows.end}) end before they start")


def _check_keys(keys: KeySet) -> None:
    if isinstance(keys, TrailingKeys):
        _integer(keys.first, "first", 0)
        _integer(keys.window, "window", 0)
        return
    previous = 0
    for start, end in keys.ranges:
        _integer(start, "key range start", 0)
        _integer(end, "key range end", 0)
        if start < previous or end <= start:
            raise EditError(f"key range [{start}, {end}) is empty or not after the one before it")
        previous = end


def _integer(value: object, name: str, low: int, high: int | None = OPEN) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise EditError(f"{name} must be an integer, not {value!r}")
    if value < low or (high is not None and value > high):
        raise EditError(f"{name} is {value}, outside of [{low}, {high}]")


def _number(value: object, name: str) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise EditError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value) or abs(value) > LARGEST:
        raise EditError(f"{name} is {value}; its magnitude must be at most {LARGEST:g}")
