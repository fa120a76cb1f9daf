"""What a setting's scores are beside the plain ones, measure by measure, and how that is written down."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from heed_server.scoring.scores import Scores
from heed_server.scoring.statistics import Interval, Ratio, Turned

ACCURACY = "accuracy"

Measures = Mapping[str, Ratio]
Row = dict[str, dict[str, Any]]
"""By measure: `value` and `difference` from plain, paired, as mean, low and high.

Of the accuracy also how many answers were `mended` and `spoiled`, and the `p` of McNemar's exact test.
"""


def measures_of(scores: Scores) -> Measures:
    """Those that every item has a score of."""
    found = {
        ACCURACY: scores.right,
        "likelihood": scores.likelihood,
        "entropy": scores.entropy,
    }
    return {name: Ratio.mean(each) for name, each in found.items() if not np.isnan(each).any()}


def compared(after: Measures, before: Measures, seed: int) -> Row:
    """The measures that both have."""
    row: Row = {
        name: {
            "value": found.interval(seed).rounded(),
            "difference": found.minus(before[name], seed).rounded(),
        }
        for name, found in after.items()
        if name in before
    }
    if ACCURACY in row:
        turned = Turned.of(after[ACCURACY].parts - before[ACCURACY].parts)
        row[ACCURACY] |= {
            "mended": turned.mended,
            "spoiled": turned.spoiled,
            "p": float(f"{turned.p_two_sided():.3g}"),
        }
    return row


def heads(measure: str) -> list[str]:
    """Of the columns that `cells` fills."""
    turned = ["mended, spoiled", "p"] if measure == ACCURACY else []
    return [f"{measure} [95 %]", "difference [95 %]", *turned]


def cells(measure: str, row: Row) -> list[str]:
    """A measure's value, its difference, and for the accuracy the answers that changed."""
    value, change = (Interval(*row[measure][key]) for key in ("value", "difference"))
    said = [
        f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]",
        f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]",
    ]
    if measure == ACCURACY:
        found = row[measure]
        said += [f"{found['mended']}, {found['spoiled']}", f"{found['p']:.2g}"]
    return said


def table(heads: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
