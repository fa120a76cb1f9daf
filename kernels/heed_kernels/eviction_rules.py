"""What the other edits of a request that evicts may say about keys.

After an eviction a key's place in the cache is no longer its position, and edits of later rows go by
places. The two agree for the protected first keys, and for generated ones where eviction does not go
on. Edits that tell the keys in between apart would hit others than they name: they are refused.

A step ends where a segment does (`segments.py`), and an observation window is in one step: a search
that does not look ahead is refused beside a window of several rows, whatever the prompt's length.
"""

from collections.abc import Iterator, Sequence

from heed_kernels.edits import (
    OPEN,
    Edit,
    FindKeys,
    FlagKeys,
    FoundKeys,
    GazeShift,
    HeadChoice,
    HeadRanking,
    KeyBias,
    KeyRanges,
    KeyScale,
    MassTransfer,
    ObserveColumns,
    ObserveMass,
    PatchKeys,
    TrailingKeys,
    VisibleKeys,
    VisibleRanges,
)
from heed_kernels.errors import EditError
from heed_kernels.evict import Evict

_Keys = KeyRanges | TrailingKeys | FoundKeys | PatchKeys


def check_beside(evict: Evict, edits: Sequence[Edit]) -> None:
    """Raise `EditError` where one of `edits` cannot be carried out beside `evict`."""
    prompt = evict.rows.start
    moved = (evict.sinks, OPEN if evict.again else max(prompt, evict.sinks))
    for edit in edits:
        if isinstance(edit, VisibleKeys | VisibleRanges):
            raise EditError("eviction does not go together with other ways of hiding keys")
        if isinstance(edit, GazeShift):
            raise EditError("outputs cannot be made anew of keys some of which are gone")
        if splits_window(evict, edit):
            raise EditError("a segment of the prompt may end inside the observation window")
        if isinstance(edit, Evict) or edit.rows.end <= max(prompt, edit.rows.start):
            continue
        if isinstance(edit, FindKeys | FlagKeys | ObserveColumns):
            raise EditError("keys cannot be observed one by one in rows after an eviction")
        for keys in _keys_of(edit):
            # A ranking reads keys one by one, also those that are gone; to other edits all of them are alike.
            alike = not isinstance(edit, HeadRanking) and _all(keys, moved)
            if not alike and not _apart(keys, moved):
                raise EditError(
                    f"rows after the eviction cannot tell the keys {_shown(moved)} apart: they move"
                )


def splits_window(evict: Evict, edit: Edit) -> bool:
    """Whether steps of the prompt end where `edit` says, and `evict` needs several of its rows in one."""
    return evict.together > 1 and isinstance(edit, FindKeys) and not edit.ahead


def _keys_of(edit: Edit) -> Iterator[_Keys]:
    match edit:
        case KeyBias() | KeyScale() | ObserveMass() | HeadRanking() | HeadChoice():
            yield edit.keys
        case MassTransfer():
            yield from (edit.sources, edit.destination, edit.gate.numerator, edit.gate.denominator)


def _apart(keys: _Keys, moved: tuple[int, int]) -> bool:
    """Whether no moved key is in the set."""
    low, high = moved
    match keys:
        case TrailingKeys():
            return keys.first >= high
        case FoundKeys():
            return False
        case PatchKeys():
            return _apart(keys.images, moved)
    return not any(start < high and end > low for start, end in keys.ranges)


def _all(keys: _Keys, moved: tuple[int, int]) -> bool:
    """Whether all moved keys are in the set."""
    low, high = moved
    if not isinstance(keys, KeyRanges):
        return False
    inside = sum(max(min(end, high) - max(start, low), 0) for start, end in keys.ranges)
    return inside == high - low


def _shown(moved: tuple[int, int]) -> str:
    low, high = moved
    return f"from {low} on" if high == OPEN else f"[{low}, {high})"
