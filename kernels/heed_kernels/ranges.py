"""A request's keys cut into elementary ranges: inside of one, every key is treated alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heed_kernels.edits import OPEN, KeyBias, KeyRanges, KeyScale, MassTransfer, VisibleRanges
from heed_kernels.errors import EditError

RANGES = 2048
"""Most elementary key ranges of a request; n separate positions take 2 n + 1 of them at worst."""

GROUPS = 32
"""Most distinct combinations of key edits in a request; group 0 is the keys without any."""

PROBES = 4
"""Most different key sets whose mass a request observes."""

DESTINATION, NUMERATOR, DENOMINATOR, PROBE = 1, 2, 4, 16
"""Bits of a key's class; probe i has the bit PROBE << i."""


@dataclass(frozen=True)
class ElementaryRanges:
    """Ascending ranges that cover all keys; the first starts at 0, each ends where the next starts.

    start, group, shift: int32 [ranges]; visible: uint8 [ranges], bit p: seen in phase p; kind: uint8
    [ranges], bits of the classes above; members: bool [groups, grouped edits], which edits a group has.
    """

    start: NDArray[np.int32]
    group: NDArray[np.int32]
    shift: NDArray[np.int32]
    visible: NDArray[np.uint8]
    kind: NDArray[np.uint8]
    members: NDArray[np.bool_]


def elementary_ranges(
    grouped: Sequence[KeyBias | KeyScale],
    visible: Sequence[VisibleRanges],
    transfer: MassTransfer | None,
    probes: Sequence[KeyRanges],
    phase_start: NDArray[np.int32],
) -> ElementaryRanges:
    """grouped: key edits at fixed positions; probes: different key sets, at most PROBES.

    Raises `EditError` where a cap is exceeded or visible ranges contradict each other.
    """
    classes: list[tuple[int, KeyRanges]] = [(PROBE << i, keys) for i, keys in enumerate(probes)]
    if transfer is not None:
        gate = transfer.gate
        classes += [(DESTINATION, transfer.destination), (NUMERATOR, gate.numerator)]
        classes.append((DENOMINATOR, gate.denominator))
    kept = [KeyRanges(tuple((a, b) for a, b, _ in edit.ranges)) for edit in visible]
    keys = [edit.keys for edit in grouped] + [keys for _, keys in classes] + kept
    pairs = [np.array(k.ranges, np.int64).reshape(-1, 2) for k in keys]  # type: ignore[union-attr]
    start = np.unique(np.concatenate([np.zeros(1, np.int64), *(p.ravel() for p in pairs)]))
    start = start[start < OPEN]
    member = np.array([inside(start, pair) for pair in pairs], bool).reshape(-1, len(start)).T

    bits = np.zeros(len(start), np.uint8)
    for column, (bit, _) in enumerate(classes, len(grouped)):
        bits |= np.where(member[:, column], bit, 0).astype(np.uint8)
    first_kept = len(grouped) + len(classes)
    seen, shift = _visible(visible, member[:, first_kept:], start, phase_start)
    codes: dict[bytes, int] = {bytes(len(grouped)): 0}
    group = np.array(
        [codes.setdefault(row.tobytes(), len(codes)) for row in member[:, : len(grouped)]], np.int32
    )
    if len(codes) > GROUPS:
        raise EditError(
            f"the edits divide the keys into {len(codes)} kinds, at most {GROUPS} are possible"
        )
    alike = np.stack([group, shift, seen, bits], axis=1)
    kept_starts = np.concatenate([[True], (alike[1:] != alike[:-1]).any(axis=1)])
    if kept_starts.sum() > RANGES:
        raise EditError(
            f"the edits divide the keys into {kept_starts.sum()} ranges, at most {RANGES} are possible"
        )
    members = np.array([np.frombuffer(code, bool) for code in codes]).reshape(len(codes), -1)
    start, group, shift = (
        start[kept_starts].astype(np.int32),
        group[kept_starts],
        shift[kept_starts],
    )
    return ElementaryRanges(start, group, shift, seen[kept_starts], bits[kept_starts], members)


def inside(start: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool [starts]: which positions lie in one of `pairs` [n, 2], sorted [start, end)."""
    if not len(pairs):
        return np.zeros(len(start), bool)
    at = np.searchsorted(pairs[:, 0], start, side="right") - 1
    found: NDArray[np.bool_] = (at >= 0) & (start < pairs[np.maximum(at, 0), 1])
    return found


def _visible(
    edits: Sequence[VisibleRanges],
    member: NDArray[np.bool_],
    start: NDArray[np.int64],
    phase_start: NDArray[np.int32],
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Bits of the phases in which each range is seen, and its shift. member: [ranges, edits]."""
    seen = np.full(len(start), (1 << len(phase_start)) - 1, np.uint8)
    shift = np.zeros(len(start), np.int32)
    shifted = np.zeros(len(start), bool)
    taken = np.zeros(len(phase_start), bool)
    for index, edit in enumerate(edits):
        held = (phase_start >= edit.rows.start) & (phase_start < edit.rows.end)
        if (held & taken).any():
            raise EditError("two VisibleRanges hold for the same rows")
        taken |= held
        phases = int(sum(1 << p for p in np.flatnonzero(held)))
        kept = member[:, index]
        seen &= np.where(kept, 255, 255 & ~phases).astype(np.uint8)
        for first, end, turn in edit.ranges:
            within = (start >= first) & (start < end)
            if (within & shifted & (shift != turn)).any():
                raise EditError(f"keys [{first}, {end}) have two different shifts")
            shift[within] = turn
            shifted |= within
    return seen, shift
