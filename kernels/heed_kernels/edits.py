"""The primitives that every method compiles to, and nothing else.

Symbols: layer l, query head h, query row q, key k; rows and keys are absolute positions counted
from 0 over the whole sequence; P is the number of prompt tokens; s_qk is the logit after RoPE and
after the factor 1/sqrt(head_dim); m_X is the sum of a row's weights over the keys X. A row sees
keys k <= q.

Edits act in this order, whatever the order in which they are listed:

    visible   keys that a `VisibleKeys` or `VisibleRanges` hides do not exist, nor do those that an
              `Evict` (see `evict.py`) has let go
    s         <- c * s + a * |s| + b     c: product of the scales, a: sum of the absolutes,
                                         b: sum of the biases of the edits that hold for (l, h, q, k)
    w         = softmax of s over the visible keys
    w         <- w after the `MassTransfer` that holds for (l, h, q)
    o         = sum_k w_k v_k            0 for a row that sees no key
    o         <- g * o + u               g: product of the gains, u: sum of the weighted vectors that
                                         hold for (l, h, q)
    o         <- r * o                   r: of the `HeadRanking` or `HeadChoice` that holds for (l, q), by
                                         comparison of the layer's heads; or o of the weights that a
                                         `GazeShift` makes of w

Observations read w before the transfer and change nothing. Every edit names the intervention that
asked for it by `source`, its index in the request's list.
"""

from dataclasses import dataclass

from heed_kernels.evict import Evict
from heed_kernels.rows import OPEN as OPEN
from heed_kernels.rows import Rows as Rows


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
class KeyRanges:
    """Keys at fixed positions: sorted, disjoint, not empty `[start, end)` ranges."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TrailingKeys:
    """For row q the keys max(first, q - window) ... q - 1; the row's own key is not among them."""

    first: int
    window: int


@dataclass(frozen=True)
class PatchKeys:
    """Of the tokens of images, each of which stands for a patch, those that the class token of the image
    encoder attends to (PAINT, arXiv 2501.12206). They are known where the encoder is: `patches.ranges_of`
    says what takes their place before edits are compiled.

    images: the tokens of each image, in the order of its patches. summary: of each image those that stand out
        in the encoder's last layer but one; otherwise those `most` that have most in its first layer, without
        the ones of the summary.
    """

    images: KeyRanges
    summary: bool
    most: int


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
    keys: KeyRanges | PatchKeys
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


@dataclass(frozen=True)
class VisibleRanges:
    """Rows in `rows` see keys inside of `ranges` only (and k <= q).

    ranges: sorted, disjoint `(start, end, shift)`. What an evicted cache leaves behind is such a list;
    at most one holds for a row. The query meets the keys of a range rotated back by its `shift`
    positions: in every row of the request, so a range has one shift in all of its edits.
    """

    rows: Rows
    ranges: tuple[tuple[int, int, int], ...]
    source: int


@dataclass(frozen=True)
class FoundKeys:
    """The keys that were found on the device for (l, h): see `FindKeys`, `FlagKeys` and
    `EditTable.found_keys`."""


@dataclass(frozen=True)
class Gate:
    """Lets a transfer act on the rows where m_(numerator - S) >= ratio * m_denominator and
    m_denominator >= least; S are the transfer's source keys."""

    numerator: KeyRanges = ALL_KEYS
    denominator: KeyRanges = ALL_KEYS
    ratio: float = 0.0
    least: float = 0.0


@dataclass(frozen=True)
class MassTransfer:
    """Move `fraction` of the mass of the source keys S to D = `destination` without S, where each key
    gains in proportion to what it has: w_S <- (1 - fraction) w_S, w_D <- w_D (1 + fraction m_S / m_D).

    sources: at most SOURCES single keys. Rows in which the gate is shut, D has no mass, or S has none
    stay as they are. At most one transfer holds for (l, h, q), and all transfers of a request have
    the same sources, destination, numerator and denominator.
    """

    on: HeadSet
    rows: Rows
    sources: KeyRanges | FoundKeys
    destination: KeyRanges
    fraction: float
    gate: Gate
    source: int


@dataclass(frozen=True)
class HeadMix:
    """Add `weight * vector` to the head's output, before the output projection.

    vectors: float32 little-endian [pairs of `on` in ascending (layer, head), head_dim].
    """

    on: HeadSet
    rows: Rows
    weight: float
    vectors: bytes
    source: int


@dataclass(frozen=True)
class HeadRanking:
    """Multiply all but the `kept` first of a layer's heads by `factor`, per row (SPIN, arXiv 2505.16411).

    Heads are ranked by the sum of a row's logits on `keys`, as they are before any edit of them; of
    equal ones the lower id comes first. In layers with heads in `on`, over all the layer's heads.
    """

    on: HeadSet
    rows: Rows
    keys: KeyRanges
    kept: int
    factor: float
    source: int


@dataclass(frozen=True)
class HeadChoice:
    """Multiply heads by `gain` that are chosen once, at row `at` of `rows` (VHR, arXiv 2412.13949).

    With o the head's output at that row and b its output without `keys`: the `chosen` heads of the largest
    |o - b|, of equal ones the lower id. With `outliers_out` none where both |o - b| and |b|^2 exceed their
    mean plus standard deviation (n - 1) over the layer's heads. In layers with heads in `on`, over all the
    layer's heads.

    b is what the row's own weights give without `keys`, or with `twin` what the last row of another request
    gave, which had the prompt without these tokens and no edit.

    Rows before `at` need what it gives in the same layer, so they have to be in one step with it.
    """

    on: HeadSet
    rows: Rows
    at: int
    keys: KeyRanges
    chosen: int
    gain: float
    outliers_out: bool
    source: int
    twin: bool = False

    def lasts(self, prompt_length: int) -> bool:
        """Whether it holds for all generated rows, and in the steps after the one that chooses for no others."""
        return self.at + 1 >= prompt_length and self.rows.end == OPEN


@dataclass(frozen=True)
class GazeShift:
    """Raise the keys that rows of the prompt turned to, and other keys with them (GIFT, arXiv 2510.22067).

    Once, in `saliency_layer`: for the rows i of `turning` D_i = max(w_i - w_(i-1), 0) on `keys`; their mean
    over these rows and the `heads` heads with the largest sums, clipped to mean +- 3 standard deviations
    (n - 1) and stretched to [0, 1], is the saliency S; 0 where all are equal, or there is no row.

    Then, in rows `rows` of the layers of `on`, which come after it: H and G are the `heads` heads with the
    largest m_keys and m_beside; in H weights of `keys` times exp(strength S), which raises the mass of `keys`
    over all of H by the factor r; in G weights of `beside` times balance r; then rows are normalised. Of
    equal heads the lower id comes first. Over all the layer's heads.
    """

    on: HeadSet
    rows: Rows
    keys: KeyRanges
    beside: KeyRanges
    turning: KeyRanges
    saliency_layer: int
    heads: int
    strength: float
    balance: float
    source: int


@dataclass(frozen=True)
class ObserveColumns:
    """Sum of each key's weights over `rows`, per (l, h): what eviction scores and sinks are made of."""

    on: HeadSet
    rows: Rows
    source: int


@dataclass(frozen=True)
class ObserveMass:
    """m_keys of each row in `rows`, per (l, h), with the log-sum-exp of its logits."""

    on: HeadSet
    rows: Rows
    keys: KeyRanges
    source: int


@dataclass(frozen=True)
class FindKeys:
    """Find a transfer's `FoundKeys`: keys whose mean weight over the rows of `rows` that see them is
    above `threshold`, which counts as divided by the number of these rows where it is `relative`.

    Only keys that at least `least_rows` of these rows see; without the keys `protected` and, with
    `protect_first`, without the first key above the threshold; the `most` largest means, of equal ones
    the first. ACT's sinks (arXiv 2406.15765).

    prompt, ahead, until: when keys are found, and for which rows: see `segments.Segments`.
    """

    on: HeadSet
    rows: Rows
    threshold: float
    least_rows: int
    most: int
    protected: KeyRanges
    protect_first: bool
    source: int
    relative: bool = False
    prompt: int = 0
    ahead: bool = False
    until: int = OPEN


@dataclass(frozen=True)
class FlagKeys:
    """Find a transfer's `FoundKeys` by the hidden states x of tokens at a layer's input, for all heads of
    the layer alike: keys of `rows` where the largest |x_d| of `dimensions` is above `threshold` times
    sqrt(mean of x^2 + 1e-6). VAR's sinks (arXiv 2503.03321).

    None is found in a layer in which none is among `needed`; with `only_needed` the others are none. At
    most SOURCES, the first ones. on: its layers.
    """

    on: HeadSet
    rows: Rows
    dimensions: tuple[int, ...]
    threshold: float
    needed: KeyRanges
    only_needed: bool
    source: int


SOURCES = 64
"""Most source keys of a transfer, per query head."""

HeadComparison = HeadRanking | HeadChoice | GazeShift
Change = (
    KeyBias
    | KeyScale
    | VisibleKeys
    | VisibleRanges
    | MassTransfer
    | HeadGain
    | HeadMix
    | HeadComparison
    | Evict
)
Observation = ObserveColumns | ObserveMass | FindKeys | FlagKeys
Edit = Change | Observation
