"""The primitives that every method compiles to, and nothing else.

Symbols: layer l, query head h, query row q, key k; rows and keys are absolute positions counted
from 0 over the whole sequence; P is the number of prompt tokens; s_qk is the logit after RoPE and
after the factor 1/sqrt(head_dim). A row sees keys k <= q.

Edits act in this order, whatever the order in which they are listed:

    visible   keys that a `VisibleKeys` hides do not exist
    s         <- c * s + a * |s| + b     c: product of the scales, a: sum of the absolutes,
                                         b: sum of the biases of the edits that hold for (l, h, q, k)
    w         = softmax of s over the visible keys
    o         = sum_k w_k v_k
    o         <- g * o                   g: product of the gains that hold for (l, h, q)

Every edit names the intervention that asked for it by `source`, its index in the request's list.
"""

from dataclasses import dataclass

OPEN = 2**31 - 1
"""End of a range that has no end (positions are int32 in the kernels)."""


@dataclass(frozen=True)
class HeadSet:
    """Which (layer, query head) pairs. Heads are numbered over the whole model, before any sharding.

    masks: one integer per layer of the model; bit h is set when query head h is in the set.
    """

    masks: tuple[int, ...]

    def heads(self, layer: int) -> tuple[int, ...]:
        """Query heads of `layer` that are in the set, ascending."""
        mask = self.masks[layer]
        return tuple(h for h in range(mask.bit_length()) if mask >> h & 1)

    @property
    def layer_count(self) -> int:
        """Number of layers with at least one head."""
        return sum(1 for mask in self.masks if mask)

    @property
    def pair_count(self) -> int:
        """Number of (layer, head) pairs."""
        return sum(mask.bit_count() for mask in self.masks)


@dataclass(frozen=True)
class Rows:
    """Query rows [start, end) by absolute position; `OPEN` as end means every later row."""

    start: int = 0
    end: int = OPEN


@dataclass(frozen=True)
class KeyRanges:
    """Keys at fixed positions: sorted, disjoint, not empty `[start, end)` ranges."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TrailingKeys:
    """For row q the keys max(first, q - window) ... q - 1; the row's own key is not among them."""

    first: int
    window: int


KeySet = KeyRanges | TrailingKeys

ALL_KEYS = KeyRanges(((0, OPEN),))


@dataclass(frozen=True)
class KeyBias:
    """Add `bias` to the logits of `keys`: their weights are multiplied by exp(bias) and the row renormalised."""

    on: HeadSet
    rows: Rows
    keys: KeySet
    bias: float
    source: int


@dataclass(frozen=True)
class KeyScale:
    """Logits of `keys` become `scale * s + absolute * |s|`."""

    on: HeadSet
    rows: Rows
    keys: KeyRanges
    scale: float
    absolute: float
    source: int


@dataclass(frozen=True)
class VisibleKeys:
    """Row q sees keys k < sinks and k > q - window, in every layer and head.

    rolling: the i-th visible key of a row has position i and the query the last of them. Against
    absolute positions only the sinks move: when E keys are hidden from row q, the query meets the
    sink keys rotated back by E positions.
    """

    sinks: int
    window: int
    rolling: bool
    source: int


@dataclass(frozen=True)
class HeadGain:
    """Multiply the head's output by `gain`, before the output projection."""

    on: HeadSet
    rows: Rows
    gain: float
    source: int


Edit = KeyBias | KeyScale | VisibleKeys | HeadGain
