"""What of a set of edits the prefix cache must know.

A block may be published when all its rows, and those before it, would be the same under any
continuation of the prompt: rows below the set's limit. The digest names the edits as those rows see
them, so that equal digests mean equal keys and values.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass, replace

from heed_kernels.edits import (
    OPEN,
    Edit,
    FindKeys,
    KeyBias,
    KeyRanges,
    KeyScale,
    ObserveColumns,
    ObserveMass,
    Rows,
    VisibleKeys,
)


def lowest(limits: Iterable[int | None]) -> int | None:
    """The smallest of the limits; None (no limit) where all are None."""
    return min((limit for limit in limits if limit is not None), default=None)


def digest(edits: Sequence[Edit], limit: int | None) -> str | None:
    """SHA-256 (hex) of the edits that rows below `limit` see; None when they see none.

    The order of the edits and their sources do not matter; how often an edit stands there does.
    """
    seen = [below(edit, OPEN if limit is None else limit) for edit in edits]
    encoded = sorted(_encode(edit) for edit in seen if edit is not None)
    if not encoded:
        return None
    return hashlib.sha256(b"heed edits 1" + _sequence(encoded)).hexdigest()


def below(edit: Edit, limit: int) -> Edit | None:
    """`edit` as rows [0, limit) see it, its source forgotten; None when they do not.

    What reaches the limit becomes open: prompts of different length then agree on what they share.
    """
    if isinstance(edit, ObserveColumns | ObserveMass):
        return None  # they change nothing
    edit = replace(edit, source=0)
    if isinstance(edit, VisibleKeys):
        return edit if limit else None
    rows = _clip(edit.rows.start, edit.rows.end, limit)
    if rows is None:
        return None
    edit = replace(edit, rows=Rows(*rows))
    if isinstance(edit, FindKeys):
        # Where the prompt ends is where its rows end; before that it changes nothing.
        until = OPEN if edit.until >= limit else edit.until
        return replace(edit, prompt=0, until=until)
    if not isinstance(edit, KeyBias | KeyScale) or not isinstance(edit.keys, KeyRanges):
        return edit
    clipped = (_clip(start, end, limit) for start, end in edit.keys.ranges)
    ranges = tuple(pair for pair in clipped if pair is not None)
    return replace(edit, keys=KeyRanges(ranges)) if ranges else None


def _clip(start: int, end: int, limit: int) -> tuple[int, int] | None:
    if start >= min(end, limit):
        return None
    return start, OPEN if end >= limit else end


def _encode(value: object) -> bytes:
    """Bytes that differ whenever the values do: a type mark, and a length before every part."""
    if is_dataclass(value):
        parts = [_encode(getattr(value, field.name)) for field in fields(value)]
        return b"d" + _sequence([type(value).__name__.encode(), *parts])
    if isinstance(value, tuple):
        return b"t" + _sequence([_encode(part) for part in value])
    if isinstance(value, bool):
        return b"b1" if value else b"b0"
    if isinstance(value, int):
        return b"i%d" % value
    if isinstance(value, float):
        return b"f" + repr(value).encode()
    if isinstance(value, str):
        return b"s" + value.encode()
    if value is None:
        return b"n"
    if isinstance(value, bytes):
        return b"y" + value
    raise TypeError(f"no canonical bytes for {type(value).__name__}")


def _sequence(parts: Sequence[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
