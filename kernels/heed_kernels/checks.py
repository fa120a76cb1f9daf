"""What makes an edit well-formed, whatever the model."""

import math

import numpy as np

from heed_kernels.edits import (
    OPEN,
    SOURCES,
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
    WindowScore,
)

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
    if isinstance(edit, Evict):
        _check_evict(edit)
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
            _check_patches(edit.keys)
            _number(edit.scale, "scale")
            _number(edit.absolute, "absolute")
        case MassTransfer():
            _check_transfer(edit)
        case ObserveMass():
            _check_ranges(edit.keys)
        case FindKeys():
            _check_find(edit)
        case FlagKeys():
            _check_flag(edit)
        case GazeShift():
            _check_shift(edit)
        case HeadRanking():
            _check_ranges(edit.keys)
            _integer(edit.kept, "kept", 0)
            _number(edit.factor, "factor")
        case HeadChoice():
            _check_ranges(edit.keys)
            _integer(edit.chosen, "chosen", 0)
            _integer(edit.at, "at", edit.rows.start, edit.rows.end - 1)
            _number(edit.gain, "gain")
            _boolean(edit.outliers_out, "outliers_out")
            _boolean(edit.twin, "twin")


def _check_patches(keys: object) -> None:
    if not isinstance(keys, PatchKeys):
        _check_ranges(keys)
        return
    _check_ranges(keys.images)
    _boolean(keys.summary, "summary")
    _integer(keys.most, "most", 0)


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
    _integer(edit.until, "until", 0)
    for name in ("protect_first", "relative", "ahead"):
        value = getattr(edit, name)
        if not isinstance(value, bool):
            raise EditError(f"{name} must be true or false, not {value!r}")


def _check_flag(edit: FlagKeys) -> None:
    _check_integers(edit.dimensions, "dimensions", 0)
    _number(edit.threshold, "threshold", 0)
    _check_ranges(edit.needed)
    _boolean(edit.only_needed, "only_needed")


def _check_shift(edit: GazeShift) -> None:
    for keys in (edit.keys, edit.beside, edit.turning):
        _check_ranges(keys)
    _integer(edit.saliency_layer, "saliency_layer", 0)
    _integer(edit.heads, "heads", 0)
    _number(edit.strength, "strength", 0, 80)
    _number(edit.balance, "balance", 0)
    if any(edit.on.masks[: edit.saliency_layer + 1]):
        raise EditError("keys are raised in layers after the saliency layer only")


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


def _check_evict(edit: Evict) -> None:
    prompt = edit.rows.start
    if prompt < 1 or edit.rows.end != OPEN:
        raise EditError("eviction holds for all rows from the end of a prompt on")
    _integer(edit.sinks, "sinks", 0)
    _integer(edit.recent, "recent", 0)
    protected = edit.sinks + edit.recent
    least = max(protected if edit.again else min(protected, prompt), 1)
    _check_integers(edit.counts, "counts", least)
    most = max(edit.counts)
    _integer(edit.most, "most", most if edit.again else min(most, prompt))
    _boolean(edit.again, "again")
    _boolean(edit.every_row, "every_row")
    rows = _check_score(edit.score)
    _check_share(edit)
    if isinstance(edit.share, QueryShare):
        rows = max(rows, edit.share.rows)
    _integer(edit.together, "together", min(rows, prompt))
    if isinstance(edit.score, ColumnScore | ExpectedScore) and not edit.every_row:
        raise EditError("a score over all prompt rows needs every_row")
    if isinstance(edit.score, ExpectedScore) and edit.score.first > edit.sinks:
        raise EditError("keys before the first that is scored have to be protected")
    if edit.again and isinstance(edit.score, WindowScore) and edit.score.window != 1:
        raise EditError("only a window of one row can evict again")
    if edit.again and edit.share is not None:
        raise EditError("a budget is shared out once; it cannot be evicted to again")


def _check_score(score: object) -> int:
    """Returns how many of the last prompt rows the score has to see together."""
    match score:
        case WindowScore():
            _integer(score.window, "window", 1)
            _integer(score.kernel, "kernel", 1)
            _number(score.variance, "variance", 0)
            if score.kernel % 2 == 0:
                raise EditError(f"kernel is {score.kernel}; it must be odd")
            if score.pooling not in ("mean", "max") or score.heads not in ("group", "layer"):
                raise EditError(f"pooling {score.pooling!r} or heads {score.heads!r} is not known")
            return score.window
        case ExpectedScore():
            _integer(score.horizon, "horizon", 1)
            _integer(score.first, "first", 0)
            _number(score.epsilon, "epsilon", 0)
            _boolean(score.covariance, "covariance")
        case ColumnScore() | NormScore() | DifferenceScore():
            pass
        case _:
            raise EditError(f"{score!r} is not a score")
    return 0


def _check_share(edit: Evict) -> None:
    share = edit.share
    window = edit.score.window if isinstance(edit.score, WindowScore) else 0
    match share:
        case None:
            return
        case HeadShare():
            _number(share.floor, "floor", 0, 1)
        case KindShare():
            _check_integers(share.far, "far", 0)
            _integer(share.top, "top", 1)
            if len(share.far) != len(edit.counts):
                raise EditError(f"far has {len(share.far)} layers, counts {len(edit.counts)}")
            if not window:
                raise EditError("heads are told apart by a WindowScore")
        case QueryShare():
            _integer(share.rows, "rows", 2)
            _number(share.tau1, "tau1", 1e-3)
            _number(share.tau2, "tau2", 1e-3)
            if share.alpha is not None:
                _number(share.alpha, "alpha", 0)
                if share.rows != window:
                    raise EditError("entropy and variance are those of a WindowScore's rows")
        case _:
            raise EditError(f"{share!r} is not a share")


def _check_heads(on: HeadSet) -> None:
    for mask in on.masks:
        _integer(mask, "head mask", 0, None)


def _check_rows(rows: object) -> None:
    if not isinstance(rows, Rows):
        raise EditError(f"rows must be a list of 2 integers, not {rows!r}")
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


def _check_integers(values: object, name: str, low: int) -> None:
    if not isinstance(values, tuple) or not values:
        raise EditError(f"{name} must be a tuple of integers, not {values!r}")
    for value in values:
        _integer(value, name, low)


def _boolean(value: object, name: str) -> None:
    if not isinstance(value, bool):
        raise EditError(f"{name} must be true or false, not {value!r}")
