"""What makes an edit well-formed, whatever the model."""

import math

import numpy as np

from heed_kernels.edits import (
    OPEN,
    SOURCES,
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
    ObserveMass,
    Rows,
    TrailingKeys,
    VisibleKeys,
    VisibleRanges,
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
    _check_rows(edit.rows)
    if isinstance(edit, VisibleRanges):
        _check_visible_ranges(edit.ranges)
        return
    _check_heads(edit.on)
    match edit:
        case HeadGain():
            _number(edit.gain, "gain")
        case HeadMix():
            _check_mix(edit)
        case KeyBias():
            _check_keys(edit.keys)
            _number(edit.bias, "bias")
        case KeyScale():
            _check_ranges(edit.keys)
            _number(edit.scale, "scale")
            _number(edit.absolute, "absolute")
        case MassTransfer():
            _check_transfer(edit)
        case ObserveMass():
            _check_ranges(edit.keys)
        case FindKeys():
            _check_find(edit)


def _check_transfer(edit: MassTransfer) -> None:
    if not isinstance(edit.sources, FoundKeys):
        _check_ranges(edit.sources)
        count = sum(end - start for start, end in edit.sources.ranges)
        if count > SOURCES:
            raise EditError(f"a transfer has {count} source keys, at most {SOURCES} are possible")
    _check_ranges(edit.destination)
    _number(edit.fraction, "fraction", 0, 1)
    if not isinstance(edit.gate, Gate):
        raise EditError(f"gate must be a Gate, not {edit.gate!r}")
    _check_ranges(edit.gate.numerator)
    _check_ranges(edit.gate.denominator)
    _number(edit.gate.ratio, "gate ratio", 0)
    _number(edit.gate.least, "gate least", 0)


def _check_find(edit: FindKeys) -> None:
    _number(edit.threshold, "threshold", 0)
    _integer(edit.least_rows, "least_rows", 1)
    _integer(edit.most, "most", 1, SOURCES)
    _check_ranges(edit.protected)
    _integer(edit.prompt, "prompt", 0)
    for name in ("protect_first", "relative", "ahead"):
        value = getattr(edit, name)
        if not isinstance(value, bool):
            raise EditError(f"{name} must be true or false, not {value!r}")


def _check_mix(edit: HeadMix) -> None:
    _number(edit.weight, "weight")
    if not isinstance(edit.vectors, bytes):
        raise EditError(f"vectors must be bytes, not {type(edit.vectors).__name__}")
    pairs = edit.on.pair_count
    if not edit.vectors or not pairs or len(edit.vectors) % (4 * pairs):
        raise EditError(
            f"vectors have {len(edit.vectors)} bytes, not a multiple of 4 for each of {pairs} heads"
        )
    values = np.frombuffer(edit.vectors, "<f4")
    if not (np.abs(values) <= LARGEST).all():
        raise EditError(f"vectors must be finite and their magnitudes at most {LARGEST:g}")


def _check_visible_ranges(ranges: object) -> None:
    if not isinstance(ranges, tuple):
        raise EditError("visible ranges must be a tuple of (start, end, shift)")
    _check_ranges(KeyRanges(tuple((start, end) for start, end, _ in ranges)))
    for _, _, shift in ranges:
        _integer(shift, "shift", 0)


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
    _check_ranges(keys)


def _check_ranges(keys: object) -> None:
    if not isinstance(keys, KeyRanges):
        raise EditError("only a KeyBias can act on keys that move with the row")
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


def _number(value: object, name: str, low: float = -LARGEST, high: float = LARGEST) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise EditError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value) or not low <= value <= high:
        raise EditError(f"{name} is {value}; it must lie in [{low:g}, {high:g}]")
