"""One request's edits as arrays, before they get a slot in the edit table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from heed_kernels.checks import check_edit
from heed_kernels.edits import (
    OPEN,
    SOURCES,
    Edit,
    FindKeys,
    FlagKeys,
    FoundKeys,
    GazeShift,
    HeadChoice,
    HeadGain,
    HeadMix,
    HeadRanking,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    MassTransfer,
    Observation,
    ObserveColumns,
    ObserveMass,
    PatchKeys,
    Rows,
    TrailingKeys,
    VisibleKeys,
    VisibleRanges,
)
from heed_kernels.errors import EditError
from heed_kernels.evict import Evict
from heed_kernels.eviction_rules import check_beside
from heed_kernels.ranges import GROUPS, PROBES, ElementaryRanges, elementary_ranges

T = TypeVar("T")

PHASES = 8
"""Most phases of a request: times at which the set of edits that hold for a row changes, plus one."""

GAIN, TRAILING_BIAS, FRACTION, RATIO, LEAST, MIX, GROUP_FIELDS = range(7)
SCALE, ABSOLUTE, BIAS = 0, 1, 2
FIELDS = GROUP_FIELDS + 3 * (GROUPS - 1)
"""What a (layer, phase) has per head: the gain, the bias of the trailing keys, the transfer's fraction
and its gate's ratio and least, the mixed-in vector, and for each group g >= 1 at
GROUP_FIELDS + 3 (g - 1) its scale, absolute and bias."""

FOUND = -1
"""Number of source keys of a request whose sources are found on the device."""


@dataclass(frozen=True)
class Compiled:
    """What `EditTable` stores for a request.

    phase_start: int32 [phases], absolute rows, ascending, the first 0.
    ranges: the elementary key ranges.
    visible: (sinks, window, rolling), window 0 where nothing is hidden.
    trailing: (first, window), window 0 where there are none.
    sources: int32 [source keys], ascending; None: they are found on the device.
    vectors: float32 [layers, phases, fields in use, query_heads], over the whole model's heads; the
        field MIX is unused.
    mix: int32 [layers, phases, query_heads], into `mixes`.
    mixes: float32 [different mixed-in vectors, head_dim], already weighted; the first is zero.
    observations: what is to be observed, as it was asked for.
    probes: the key sets of `ObserveMass`, in the order of their class bits.
    evicts: whether keys are evicted once the prompt is computed.
    active: bool [layers, phases]: whether anything differs from plain attention.
    """

    phase_start: NDArray[np.int32]
    ranges: ElementaryRanges
    visible: tuple[int, int, int]
    trailing: tuple[int, int]
    sources: NDArray[np.int32] | None
    vectors: NDArray[np.float32]
    mix: NDArray[np.int32]
    mixes: NDArray[np.float32]
    observations: tuple[Observation, ...]
    probes: tuple[KeyRanges, ...]
    evicts: bool
    active: NDArray[np.bool_]


def compile_edits(
    edits: Sequence[Edit],
    layers: int,
    query_heads: int,
    head_dim: int | None = None,
    multiplied: Sequence[HeadChoice] = (),
) -> Compiled:
    """head_dim: needed by `HeadMix` alone. multiplied: those of the edits whose rows a kernel multiplies by
    what was chosen, and has to compute for that.

    Raises `EditError` for edits that are malformed, do not fit the model, or exceed a cap.
    """
    for edit in edits:
        check_edit(edit)
        if isinstance(edit, Evict):
            _check_layers(len(edit.counts), "counts", layers)
        elif not isinstance(edit, VisibleKeys | VisibleRanges):
            _check_fit(edit.on, layers, query_heads)
        if isinstance(edit, KeyScale) and isinstance(edit.keys, PatchKeys):
            raise EditError("the keys of patches are not known here")
    evict = _only(_those(edits, Evict), "Evict")
    if evict is not None:
        check_beside(evict, edits)
    visible = _only(_those(edits, VisibleKeys), "VisibleKeys")
    compared = [e for e in edits if isinstance(e, _COMPARED)]
    _only(compared, "comparison of heads")
    kinds = {e.keys: None for e in _those(edits, KeyBias)}
    trailing = _only([k for k in kinds if isinstance(k, TrailingKeys)], "TrailingKeys")
    grouped = [
        e for e in edits if isinstance(e, KeyBias | KeyScale) and isinstance(e.keys, KeyRanges)
    ]
    transfers, kept = _those(edits, MassTransfer), _those(edits, VisibleRanges)
    _check_transfers(transfers, edits)
    if visible is not None and visible.rolling and any(s for e in kept for _, _, s in e.ranges):
        raise EditError("rolling positions and shifted visible ranges do not go together")
    probes = tuple({e.keys: None for e in _those(edits, ObserveMass)})
    if len(probes) > PROBES:
        raise EditError(f"{len(probes)} key sets are observed, at most {PROBES} are possible")

    hides_from = min(visible.sinks + visible.window, OPEN) if visible else OPEN
    changes = [e.rows for e in edits if not isinstance(e, VisibleKeys | _OBSERVED)]
    # Rows before the one that chooses are multiplied with it, and never by a kernel.
    changes += [_from_choice(choice) for choice in _those(edits, HeadChoice)]
    phase_start = _phases(changes, hides_from)
    ranges = elementary_ranges(
        grouped, kept, transfers[0] if transfers else None, probes, phase_start
    )
    vectors = _vectors(edits, grouped, ranges, phase_start, layers, query_heads)
    mix, mixes = _mixes(_those(edits, HeadMix), phase_start, layers, query_heads, head_dim)
    plain = np.zeros((vectors.shape[2], 1), np.float32)
    plain[GAIN] = 1
    plain[GROUP_FIELDS + SCALE :: 3] = 1
    hidden = phase_start >= hides_from
    for edit in kept:
        # Shifts hold for every row.
        hidden |= _held(edit.rows, phase_start) | any(shift for _, _, shift in edit.ranges)
    if evict is not None:
        hidden |= _held(evict.rows, phase_start)
    active = (vectors != plain).any(axis=(2, 3)) | (mix != 0).any(axis=2) | hidden
    for choice in multiplied:
        held = _held(_from_choice(choice), phase_start)
        active |= np.array(choice.on.masks, bool)[:, None] & held
    sources = np.zeros(0, np.int32)
    if transfers and isinstance(transfers[0].sources, KeyRanges):
        runs = [np.arange(start, end) for start, end in transfers[0].sources.ranges]
        sources = np.concatenate([sources, *runs]).astype(np.int32)
    found = bool(transfers) and isinstance(transfers[0].sources, FoundKeys)
    return Compiled(
        phase_start,
        ranges,
        (visible.sinks, visible.window, int(visible.rolling)) if visible else (0, 0, 0),
        (trailing.first, trailing.window) if trailing else (0, 0),
        None if found else sources[:SOURCES],
        vectors,
        mix,
        mixes,
        tuple(e for e in edits if isinstance(e, _OBSERVED)),
        probes,
        evict is not None,
        active,
    )


_OBSERVED = ObserveColumns | ObserveMass | FindKeys | FlagKeys
_COMPARED = HeadRanking | HeadChoice | GazeShift
_BESIDE = VisibleKeys | VisibleRanges | Evict | HeadMix | _COMPARED | _OBSERVED
"""Edits that are not in the vectors of a line."""


def _those(edits: Sequence[Edit], kind: type[T]) -> list[T]:
    return [edit for edit in edits if isinstance(edit, kind)]


def _only(items: list[T], name: str) -> T | None:
    if len(items) > 1:
        raise EditError(f"a request can have one {name}, not {len(items)} different ones")
    return items[0] if items else None


def _check_layers(given: int, what: str, layers: int) -> None:
    if given != layers:
        raise EditError(f"{what} has {given} layers, the model {layers}")


def _check_fit(on: HeadSet, layers: int, query_heads: int) -> None:
    _check_layers(len(on.masks), "a head set", layers)
    highest = max((mask.bit_length() for mask in on.masks), default=0)
    if highest > query_heads:
        raise EditError(f"head {highest - 1} is selected, the model has {query_heads} heads")


def _check_transfers(transfers: Sequence[MassTransfer], edits: Sequence[Edit]) -> None:
    structures = {
        (t.sources, t.destination, t.gate.numerator, t.gate.denominator) for t in transfers
    }
    if len(structures) > 1:
        raise EditError("the transfers of a request must have one set of sources and destinations")
    finds = [edit for edit in edits if isinstance(edit, FindKeys | FlagKeys)]
    if len(finds) > 1:
        raise EditError("a request can find keys in one way, not in several")


def _held(rows: Rows, phase_start: NDArray[np.int32]) -> NDArray[np.bool_]:
    """bool [phases]: in which phases an edit with these rows holds."""
    held: NDArray[np.bool_] = (phase_start >= rows.start) & (phase_start < rows.end)
    return held


def _from_choice(choice: HeadChoice) -> Rows:
    """Its rows from the one on that chooses."""
    return Rows(choice.at, choice.rows.end)


def _mask(on: HeadSet, query_heads: int) -> NDArray[np.bool_]:
    """bool [layers, query_heads]."""
    size = (query_heads + 7) // 8
    packed = np.frombuffer(b"".join(m.to_bytes(size, "little") for m in on.masks), np.uint8)
    bits = np.unpackbits(packed.reshape(-1, size), axis=1, bitorder="little")
    return bits[:, :query_heads].astype(bool)


def _phases(changes: Sequence[Rows], hides_from: int) -> NDArray[np.int32]:
    starts = {0, hides_from}
    for rows in changes:
        if rows.start < rows.end:
            starts |= {rows.start, rows.end}
    starts.discard(OPEN)
    if len(starts) > PHASES:
        raise EditError(
            f"the edits change at {len(starts) - 1} different rows, at most {PHASES - 1} are possible"
        )
    return np.array(sorted(starts), np.int32)


def _vectors(
    edits: Sequence[Edit],
    grouped: Sequence[KeyBias | KeyScale],
    ranges: ElementaryRanges,
    phase_start: NDArray[np.int32],
    layers: int,
    query_heads: int,
) -> NDArray[np.float32]:
    """float32 [layers, phases, fields, query_heads]. Raises `EditError` where float32 overflows."""
    groups, phases = len(ranges.members), len(phase_start)
    vectors = np.zeros((layers, phases, GROUP_FIELDS + 3 * (groups - 1), query_heads))
    vectors[:, :, GAIN] = 1
    vectors[:, :, GROUP_FIELDS + SCALE :: 3] = 1
    transferred = np.zeros((layers, phases, query_heads), bool)
    for edit in edits:
        if isinstance(edit, _BESIDE):
            continue
        held = _held(edit.rows, phase_start)
        on = _mask(edit.on, query_heads)[:, None, :] & held[None, :, None]
        if isinstance(edit, HeadGain):
            vectors[:, :, GAIN] *= np.where(on, edit.gain, 1.0)
        elif isinstance(edit, MassTransfer):
            if (on & transferred).any():
                raise EditError("two transfers hold for the same head and row")
            transferred |= on
            fields = (FRACTION, edit.fraction), (RATIO, edit.gate.ratio), (LEAST, edit.gate.least)
            for field, value in fields:
                vectors[:, :, field] += np.where(on & (edit.fraction > 0), value, 0.0)
        elif isinstance(edit.keys, TrailingKeys):
            assert isinstance(edit, KeyBias)
            vectors[:, :, TRAILING_BIAS] += np.where(on, edit.bias, 0.0)
        else:
            index = next(i for i, other in enumerate(grouped) if other is edit)
            for group in np.flatnonzero(ranges.members[:, index]):
                at = GROUP_FIELDS + 3 * (int(group) - 1)
                if isinstance(edit, KeyBias):
                    vectors[:, :, at + BIAS] += np.where(on, edit.bias, 0.0)
                else:
                    vectors[:, :, at + SCALE] *= np.where(on, edit.scale, 1.0)
                    vectors[:, :, at + ABSOLUTE] += np.where(on, edit.absolute, 0.0)
    with np.errstate(over="ignore"):
        single = vectors.astype(np.float32)
    if not np.isfinite(single).all():
        raise EditError("the edits together exceed the range of float32")
    return single


def _mixes(
    edits: Sequence[HeadMix],
    phase_start: NDArray[np.int32],
    layers: int,
    query_heads: int,
    head_dim: int | None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """int32 [layers, phases, query_heads] into float32 [vectors, head_dim], the first of zeros."""
    index = np.zeros((layers, len(phase_start), query_heads), np.int32)
    width = head_dim or 1
    sums: dict[tuple[int, int, int], NDArray[np.float64]] = {}
    for edit in edits:
        if head_dim is None:
            raise EditError("vectors cannot be mixed in here")
        vectors = np.frombuffer(edit.vectors, "<f4").astype(np.float64)
        pairs = np.argwhere(_mask(edit.on, query_heads))
        if vectors.size != len(pairs) * head_dim:
            raise EditError(
                f"vectors hold {vectors.size} numbers, not {head_dim} for each of {len(pairs)} heads"
            )
        phases = np.flatnonzero(_held(edit.rows, phase_start))
        weighted = edit.weight * vectors.reshape(len(pairs), head_dim)
        for (layer, head), vector in zip(pairs.tolist(), weighted, strict=True):
            for phase in phases.tolist():
                key = (layer, phase, head)
                sums[key] = sums.get(key, 0.0) + vector
    rows: dict[bytes, int] = {np.zeros(width, np.float32).tobytes(): 0}
    for key, vector in sums.items():
        with np.errstate(over="ignore"):
            single = vector.astype(np.float32)
        if not np.isfinite(single).all():
            raise EditError("the edits together exceed the range of float32")
        index[key] = rows.setdefault((single + np.float32(0)).tobytes(), len(rows))
    mixes: NDArray[Any] = np.array([np.frombuffer(row, np.float32) for row in rows])
    return index, mixes
