"""One request's edits as arrays, before they get a slot in the edit table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from heed_kernels.checks import check_edit
from heed_kernels.edits import (
    OPEN,
    Edit,
    HeadGain,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    TrailingKeys,
    VisibleKeys,
)
from heed_kernels.errors import EditError

T = TypeVar("T")

PHASES = 8
"""Most phases of a request: times at which the set of edits that hold for a row changes, plus one."""

RANGES = 2048
"""Most elementary key ranges of a request; n separate positions take 2 n + 1 of them at worst."""

GROUPS = 32
"""Most distinct combinations of key edits in a request; group 0 is the keys without any."""

GAIN, TRAILING_BIAS = 0, 1
SCALE, ABSOLUTE, BIAS = 0, 1, 2
FIELDS = 2 + 3 * (GROUPS - 1)
"""Per-head vectors of one (layer, phase): the gain, the bias of the trailing keys, and for each
group g >= 1 at 2 + 3 (g - 1) its scale, absolute and bias."""


@dataclass(frozen=True)
class Compiled:
    """What `EditTable` stores for a request.

    phase_start: int32 [phases], absolute rows, ascending, the first 0.
    range_start, range_group: int32 [ranges]; elementary ranges, ascending, the first starts at 0 and
        each ends where the next starts.
    visible: (sinks, window, rolling), window 0 where nothing is hidden.
    trailing: (first, window), window 0 where there are none.
    vectors: float32 [layers, phases, fields in use, query_heads], over the whole model's heads.
    active: bool [layers, phases]: whether anything differs from plain attention.
    """

    phase_start: NDArray[np.int32]
    range_start: NDArray[np.int32]
    range_group: NDArray[np.int32]
    visible: tuple[int, int, int]
    trailing: tuple[int, int]
    vectors: NDArray[np.float32]
    active: NDArray[np.bool_]


def compile_edits(edits: Sequence[Edit], layers: int, query_heads: int) -> Compiled:
    """Raises `EditError` for edits that are malformed, do not fit the model, or exceed a cap."""
    for edit in edits:
        check_edit(edit)
        if not isinstance(edit, VisibleKeys):
            _check_fit(edit.on, layers, query_heads)
    visible = _only([e for e in edits if isinstance(e, VisibleKeys)], "VisibleKeys")
    kinds = {e.keys: None for e in edits if isinstance(e, KeyBias)}
    trailing = _only([k for k in kinds if isinstance(k, TrailingKeys)], "TrailingKeys")
    scoped = [e for e in edits if not isinstance(e, VisibleKeys)]
    grouped = [e for e in scoped if not isinstance(e, HeadGain) and isinstance(e.keys, KeyRanges)]
    hides_from = min(visible.sinks + visible.window, OPEN) if visible else OPEN
    phase_start = _phases(scoped, hides_from)
    range_start, range_group, members = _ranges(grouped)

    phases, groups = len(phase_start), len(members)
    fields = 2 + 3 * (groups - 1)
    vectors = np.zeros((layers, phases, fields, query_heads))
    vectors[:, :, GAIN] = 1
    vectors[:, :, 2 + SCALE :: 3] = 1
    for edit in scoped:
        held = (phase_start >= edit.rows.start) & (phase_start < edit.rows.end)
        on = _mask(edit.on, query_heads)[:, None, :] & held[None, :, None]
        if isinstance(edit, HeadGain):
            vectors[:, :, GAIN] *= np.where(on, edit.gain, 1.0)
        elif isinstance(edit.keys, TrailingKeys):
            assert isinstance(edit, KeyBias)
            vectors[:, :, TRAILING_BIAS] += np.where(on, edit.bias, 0.0)
        else:
            index = next(i for i, other in enumerate(grouped) if other is edit)
            for group in range(1, groups):
                if not members[group, index]:
                    continue
                at = 2 + 3 * (group - 1)
                if isinstance(edit, KeyBias):
                    vectors[:, :, at + BIAS] += np.where(on, edit.bias, 0.0)
                else:
                    vectors[:, :, at + SCALE] *= np.where(on, edit.scale, 1.0)
                    vectors[:, :, at + ABSOLUTE] += np.where(on, edit.absolute, 0.0)
    with np.errstate(over="ignore"):
        single = vectors.astype(np.float32)
    if not np.isfinite(single).all():
        raise EditError("the edits together exceed the range of float32")
    plain = np.zeros((fields, 1), np.float32)
    plain[GAIN] = 1
    plain[2 + SCALE :: 3] = 1
    active = (single != plain).any(axis=(2, 3)) | (phase_start >= hides_from)[None, :]
    return Compiled(
        phase_start,
        range_start,
        range_group,
        (visible.sinks, visible.window, int(visible.rolling)) if visible else (0, 0, 0),
        (trailing.first, trailing.window) if trailing else (0, 0),
        single,
        active,
    )


def _only(items: list[T], name: str) -> T | None:
    if len(items) > 1:
        raise EditError(f"a request can have one {name}, not {len(items)} different ones")
    return items[0] if items else None


def _check_fit(on: HeadSet, layers: int, query_heads: int) -> None:
    if len(on.masks) != layers:
        raise EditError(f"a head set has {len(on.masks)} layers, the model {layers}")
    highest = max((mask.bit_length() for mask in on.masks), default=0)
    if highest > query_heads:
        raise EditError(f"head {highest - 1} is selected, the model has {query_heads} heads")


def _mask(on: HeadSet, query_heads: int) -> NDArray[np.bool_]:
    """bool [layers, query_heads]."""
    size = (query_heads + 7) // 8
    packed = np.frombuffer(b"".join(m.to_bytes(size, "little") for m in on.masks), np.uint8)
    bits = np.unpackbits(packed.reshape(-1, size), axis=1, bitorder="little")
    return bits[:, :query_heads].astype(bool)


def _phases(scoped: Sequence[KeyBias | KeyScale | HeadGain], hides_from: int) -> NDArray[np.int32]:
    starts = {0, hides_from}
    for edit in scoped:
        if edit.rows.start < edit.rows.end:
            starts |= {edit.rows.start, edit.rows.end}
    starts.discard(OPEN)
    if len(starts) > PHASES:
        raise EditError(
            f"the edits change at {len(starts) - 1} different rows, at most {PHASES - 1} are possible"
        )
    return np.array(sorted(starts), np.int32)


def _ranges(
    grouped: Sequence[KeyBias | KeyScale],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]:
    """Elementary ranges, their groups, and bool [groups, len(grouped)]: which edits a group has."""
    pairs = [np.array(e.keys.ranges, np.int64).reshape(-1, 2) for e in grouped]  # type: ignore[union-attr]
    starts = np.unique(np.concatenate([np.zeros(1, np.int64), *(p.ravel() for p in pairs)]))
    starts = starts[starts < OPEN]
    member = np.zeros((len(starts), len(grouped)), bool)
    for index, pair in enumerate(pairs):
        if len(pair):
            at = np.searchsorted(pair[:, 0], starts, side="right") - 1
            member[:, index] = (at >= 0) & (starts < pair[np.maximum(at, 0), 1])
    codes: dict[bytes, int] = {bytes(len(grouped)): 0}
    group = np.array([codes.setdefault(row.tobytes(), len(codes)) for row in member], np.int32)
    kept = np.concatenate([[True], group[1:] != group[:-1]])
    starts, group = starts[kept], group[kept]
    if len(codes) > GROUPS:
        raise EditError(
            f"the edits divide the keys into {len(codes)} kinds, at most {GROUPS} are possible"
        )
    if len(starts) > RANGES:
        raise EditError(
            f"the edits divide the keys into {len(starts)} ranges, at most {RANGES} are possible"
        )
    members = np.array([np.frombuffer(code, bool) for code in codes]).reshape(len(codes), -1)
    return starts.astype(np.int32), group, members
