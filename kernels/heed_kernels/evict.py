"""Eviction: which prompt keys stay in the cache, as plain data that every method compiles to.

Symbols as in `edits.py`; g is a KV head, P the number of prompt tokens. When row P - 1 has been
computed, each KV head of each layer keeps some keys for good. What survives is moved, in order, to the
first places of the request's cache, so that a later row q reads

    the places k < kept(l, g), and the keys k >= end

where `end` is the number of tokens computed when the last eviction took place (0 before the first).
Survivors keep the rotation of their own positions, and rows count positions over the whole sequence
still. What other edits of these rows say about keys holds for places; see `eviction_rules.py`.

Which keys survive an eviction at `end`, for one (l, g) that keeps n: those that are protected,
k < sinks or k >= end - recent, and of the others those with the highest scores, of equal ones the
first. Budgets are met to the token: where a share does not come out even, every part is rounded down
and the largest remainders get one more, of equal ones the first.
"""

from dataclasses import dataclass
from typing import Literal

from heed_kernels.rows import Rows


@dataclass(frozen=True)
class WindowScore:
    """mean + variance * (n - 1 variance) of a key's weights over the last `window` rows, pooled.

    Weights are those of the edited attention, 0 for a row that does not see the key. First each query
    head is taken by itself, then the mean over those of the KV head, or of the whole layer; that is
    pooled over the keys k < end - recent with an odd `kernel` and stride 1: places beyond the ends count
    as 0 in a mean and not at all in a maximum.
    """

    window: int
    kernel: int = 1
    pooling: Literal["mean", "max"] = "mean"
    variance: float = 0.0
    heads: Literal["group", "layer"] = "group"


@dataclass(frozen=True)
class ColumnScore:
    """Sum of a key's weights over all rows so far, averaged over the query heads of the KV head."""


@dataclass(frozen=True)
class NormScore:
    """Minus the Euclidean norm of the key."""


@dataclass(frozen=True)
class DifferenceScore:
    """Minus the cosine between the key, as it is stored, and the mean of all keys at unit length."""


@dataclass(frozen=True)
class ExpectedScore:
    """(a_k + epsilon) |v_k|, with a = softmax over k >= first of the logit expected for later queries.

    Mean mu and covariance C (divided by n) of the queries before rotation over the rows [first, P);
    R the mean rotation of the `horizon` positions from P on. The logit is
    k . R mu / sqrt(d) + k' R C R' k / (2 d), the second term only with `covariance`; a is averaged over
    the query heads of the KV head. Keys below `first` have to be protected.
    """

    horizon: int
    first: int
    epsilon: float
    covariance: bool


Score = WindowScore | ColumnScore | NormScore | DifferenceScore | ExpectedScore


@dataclass(frozen=True)
class HeadShare:
    """Ada-KV: the KV heads of a layer share its budget by where the layer's highest scores lie.

    With B keys of each head's count unprotected and H heads, n_g of the H * B highest scores lie in
    head g; it keeps (1 - floor) n_g + floor * B of its unprotected keys.
    """

    floor: float


@dataclass(frozen=True)
class KindShare:
    """Task-KV: the heads farthest from the layer's semantic centre, and the nearest one, come first.

    The vector of KV head g is the sum of C_k v_k over its `top` largest C_k, with C the mean over the
    window and the head's query heads of the weights on every key, not pooled; the centre is the mean
    over heads, distances are Euclidean. In layer l, far[l] heads are chosen one after another: of
    those whose distance is within 1e-4 (relative) of the farthest that is left, the first; then in the
    same way the nearest of those that are left.

    The chosen heads keep all their keys where the layer's budget leaves the others their protected
    ones, and the others share the rest equally. Where it does not, the others keep what is protected
    and the chosen share the rest equally.
    """

    far: tuple[int, ...]
    top: int


@dataclass(frozen=True)
class QueryShare:
    """TAPPA: layers whose last `rows` queries resemble each other less get more of the budget.

    pref = 1 - q for alpha None, else entropy^(1 / tau1) * variance^(1 / tau2) + alpha (1 - q), where q
    is the mean over query heads of the mean cosine of two different ones of these queries (rotated);
    entropy is the sum of -w ln(w + 1e-10) and variance that of the n - 1 variances over rows, for the
    weights w of these rows on the keys k < end - recent, over all query heads.

    The unprotected budget of all layers is shared in proportion to pref (equally where none is above
    0), no layer above what it has; what is cut off there goes to the others in the same way.
    """

    rows: int
    alpha: float | None
    tau1: float
    tau2: float


Share = HeadShare | KindShare | QueryShare


@dataclass(frozen=True)
class Evict:
    """Keep `counts[l]` keys in each KV head of layer l, protected ones included.

    counts: one per layer; on the average of its heads where `share` shares them out (of all layers
        and heads for `QueryShare`).
    most: no head of any layer can keep more than this; tokens.
    sinks, recent: protected.
    again: evict in decode too, back to `counts`, whenever a cache block is full: candidates are then
        all keys that the head has, by their score of that moment.
    together: the last so many prompt rows are computed in one step.
    every_row: all prompt rows are computed; none comes out of the prefix cache.
    rows: the generated ones.
    """

    score: Score
    share: Share | None
    counts: tuple[int, ...]
    most: int
    sinks: int
    recent: int
    again: bool
    together: int
    every_row: bool
    rows: Rows
    source: int
