"""Whether edits can take attention away from the first tokens of a prompt.

The first n keys are protected when, in every edited row, layer and head, each of them has at least the
weight that the row's logits give it without the edits. That holds for a whole list when it holds for
each edit: protected keys share one bias, no other key has a higher one, none of them is hidden, and none
gives up mass. With rolling positions the logits are those of the rolled ones, which bring the first
tokens nearer.

Gains and vectors on head outputs leave the weights as they are, whichever heads they are for. Outputs that
are made anew of other weights do not.
"""

from collections.abc import Sequence
from typing import assert_never

from heed_kernels.edits import (
    Edit,
    FindKeys,
    FlagKeys,
    FoundKeys,
    GazeShift,
    HeadChoice,
    HeadGain,
    HeadMix,
    HeadRanking,
    KeyBias,
    KeyRanges,
    KeyScale,
    MassTransfer,
    ObserveColumns,
    ObserveMass,
    VisibleKeys,
    VisibleRanges,
)
from heed_kernels.evict import Evict


def weakens(edits: Sequence[Edit], tokens: int) -> str | None:
    """What in the edits of one intervention can take weight from the first `tokens` keys; None: nothing."""
    return next(filter(None, (_weakens(edit, edits, tokens) for edit in edits)), None)


def _weakens(edit: Edit, edits: Sequence[Edit], tokens: int) -> str | None:
    match edit:
        case HeadGain() | HeadMix() | HeadRanking() | HeadChoice():
            return None
        case ObserveColumns() | ObserveMass() | FindKeys() | FlagKeys():
            return None
        case VisibleKeys() | Evict():
            return None if edit.sinks >= tokens else f"it keeps {edit.sinks} `sinks`"
        case VisibleRanges():
            shown = KeyRanges(tuple((start, end) for start, end, _ in edit.ranges))
            return None if _covers(shown, tokens) else "it hides some of them"
        case KeyBias():
            return _biased(edit, tokens)
        case KeyScale():
            return "it changes logits by what they are"
        case MassTransfer():
            return _transferred(edit, edits, tokens)
        case GazeShift():
            return "it raises other tokens"
    assert_never(edit)


def _biased(edit: KeyBias, tokens: int) -> str | None:
    keys = edit.keys
    if edit.bias > 0:
        if isinstance(keys, KeyRanges) and _covers(keys, tokens):
            return None
        return "it draws attention to other tokens, or to some of them alone"
    first = keys.ranges[0][0] if isinstance(keys, KeyRanges) else keys.first
    if edit.bias == 0 or first >= tokens:
        return None
    return f'it weakens some of them: a span {{"start": 0, "end": {tokens}}} would spare them'


def _transferred(edit: MassTransfer, edits: Sequence[Edit], tokens: int) -> str | None:
    if isinstance(edit.sources, FoundKeys):
        searches = [each for each in edits if isinstance(each, FindKeys | FlagKeys)]
        spared = all(_spares(search, tokens) for search in searches)
        return None if searches and spared else "it may find sinks among them"
    if edit.fraction >= 0 and edit.sources.ranges[0][0] >= tokens:
        return None
    return "it moves weight away from some of them"


def _spares(search: FindKeys | FlagKeys, tokens: int) -> bool:
    """Whether none of the first `tokens` keys is ever found."""
    if isinstance(search, FindKeys):
        return _covers(search.protected, tokens)
    return search.only_needed and all(start >= tokens for start, _ in search.needed.ranges)


def _covers(keys: KeyRanges, tokens: int) -> bool:
    """Whether the keys [0, tokens) are all among `keys`."""
    return any(start <= 0 and end >= tokens for start, end in keys.ranges)
