"""Eviction: which prompt keys stay in the cache, as plain data that every method compiles to.

Symbols as in `edits.py`; g is a KV head, P the number of prompt tokens. When row P - 1 has been
computed, each KV head of each layer keeps some keys for good. What survives is moved, in order, to the
first places of the request's cache, so that a later row q reads

    the places k < kept(l, g), and the keys k >= end

where `end` is the number of tokens computed when the last eviction took place (0 before the first).
Survivors keep the rotation of their own positions, and rows count positions over the whole sequence
still.

Which keys survive, for one (l, g) that keeps n: those that are protected, k < sinks or
k >= P - recent, and of the others those with the highest scores, of equal ones the first.
"""

from dataclasses import dataclass
from typing import Literal

from heed_kernels.edits import Rows


@dataclass(frozen=True)
class WindowScore:
    """mean + variance * (n - 1 variance) of a key's weights over the last `window` prompt rows, pooled.

    Weights are those of the edited attention, 0 for a row that does not see the key. They are averaged
    over the query heads of the KV head, or of the whole layer. Pooling runs over the keys k < P - recent
    with an odd `kernel` and stride 1: places beyond the ends count as 0 in a mean and not at all in a
    maximum.
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
    """(a_k + epsilon) |v_k|, with a = softmax over keys of the logit expected for later queries.

    Mean mu and covariance C (n - 1 is not used: divided by n) of the queries before rotation over the
    rows [first, P); R the mean rotation of the `horizon` positions from P on. The logit is
    k . R mu / sqrt(d) + k' R C R' k / (2 d), the second term only with `covariance`; a is averaged over
    the query heads of the KV head.
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
    head g; it keeps (1 - floor) n_g + floor * B of its unprotected keys, rounded so that the layer's sum
    stays H * B (largest remainders first, of equal ones the first head).
    """

    floor: float


@dataclass(frozen=True)
class KindShare:
    """Task-KV: heads far from the layer's semantic centre, and the nearest one, keep all keys.

    The vector of KV head g is the sum over its `top` highest scores of score times value, averaged over
    its query heads; distances to the mean over heads are Euclidean. In layer r of R,
    round(H * beta - (H * beta - least) / (R - 1) * r) of the H heads are far. What the layer's budget
    leaves is shared equally by the others, which never keep fewer than their protected keys.
    """

    beta: float
    least: int
    top: int


@dataclass(frozen=True)
class QueryShare:
    """TAPPA: layers whose last `rows` queries resemble each other less get more of the budget.

    pref = (1 - q) for alpha None, else entropy^(1 / tau1) * variance^(1 / tau2) + alpha (1 - q), where q
    is the mean over query heads of the mean cosine of two different ones of these queries (rotated).
    The unprotected budget of all layers is shared in proportion to pref, no layer above what it has;
    what is cut off there goes to the others.
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
