"""Which patches of an image the class token of its encoder attends to (PAINT), and edits of their tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from heed_kernels.edits import Edit, KeyRanges, KeyScale, PatchKeys
from heed_kernels.errors import EditError


@dataclass(frozen=True)
class ClassAttention:
    """What the class token gives to each patch of one image, summed over the encoder's heads.

    first: float [patches], of the encoder's first layer. later: of its last but one.
    """

    first: NDArray[np.float32]
    later: NDArray[np.float32]


def summary_of(attention: ClassAttention) -> NDArray[np.bool_]:
    """bool [patches]: those above Q3 + 1.5 (Q3 - Q1) in the later layer, quartiles interpolated linearly."""
    later = attention.later.astype(np.float64)
    low, high = np.quantile(later, [0.25, 0.75])
    found: NDArray[np.bool_] = later > high + 1.5 * (high - low)
    return found


def local_of(attention: ClassAttention, count: int) -> NDArray[np.bool_]:
    """bool [patches]: the `count` that have most in the first layer, of equal ones the first, without those of
    the summary."""
    order = np.argsort(-attention.first, kind="stable")
    found = np.zeros(len(order), bool)
    found[order[:count]] = True
    return found & ~summary_of(attention)


def ranges_of(keys: PatchKeys, attention: Sequence[ClassAttention]) -> KeyRanges:
    """What takes the place of `keys`, possibly nothing. attention: of each image.

    Raises:
        EditError: there is another number of images, or of patches.
    """
    images = keys.images.ranges
    if len(images) != len(attention):
        raise EditError(f"there are {len(attention)} images, and keys of {len(images)}")
    single: list[int] = []
    for (start, end), seen in zip(images, attention, strict=True):
        if end - start != len(seen.first):
            raise EditError(f"an image of {len(seen.first)} patches has {end - start} tokens")
        chosen = summary_of(seen) if keys.summary else local_of(seen, keys.most)
        single += (start + np.flatnonzero(chosen)).tolist()
    runs: list[tuple[int, int]] = []
    for key in single:
        if runs and runs[-1][1] == key:
            runs[-1] = runs[-1][0], key + 1
        else:
            runs.append((key, key + 1))
    return KeyRanges(tuple(runs))


def at_worst(edits: Iterable[Edit]) -> tuple[Edit, ...]:
    """`edits` with every other patch in place of each `PatchKeys`, in turn, so that no two tokens of an image
    are treated alike: no set takes more room in an edit table."""
    found = []
    for edit in edits:
        if isinstance(edit, KeyScale) and isinstance(edit.keys, PatchKeys):
            single = [
                (key, key + 1)
                for start, end in edit.keys.images.ranges
                for key in range(start + edit.keys.summary, end, 2)
            ]
            edit = replace(edit, keys=KeyRanges(tuple(single)))
        found.append(edit)
    return tuple(found)
