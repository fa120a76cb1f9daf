"""Heads kept when their edit alone helps beyond the noise: for `head_gain` and `act`.

ACT (Yu et al., ICML 2024, arXiv 2406.15765) calibrates one head at a time over the whole set; how its
authors went from those results to their lists is not published. The rule here: a head is kept when the
one-sided bootstrap lower bound of its mean paired gain is above 0 at the stated level. Of 0/1 scores the
bootstrap is too sure where few answers change, so that there an exact sign test has to agree at that
level. The level holds for each head by itself: of many heads that change scores at random, some get
through, which is why the set is measured again as a whole, on held-out items.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from heed_server.calibrate.bench import Bench, Choice, Sweep, on_heads
from heed_server.calibrate.errors import CalibrationError


async def choose(
    bench: Bench,
    method: str,
    parameters: dict[str, Any],
    level: float,
    mapped: Callable[[Sweep], None],
) -> Choice:
    """Sweep `method` with `parameters` over all heads, and keep those that help.

    mapped: takes the sweep, whatever comes of it.

    Raises:
        CalibrationError: none does; the message carries the map.
    """
    intervention = {"method": method, **parameters}
    sweep = await bench.sweep("one head at a time", intervention, level)
    mapped(sweep)
    kept = sweep.ranked(_helps(sweep, level))
    if not kept:
        raise CalibrationError(
            f"no head alone makes the objective better at level {level:g}\n{heat_map(sweep)}"
        )
    others = "all heads of these layers" if bench.everywhere else "its default heads"
    rule = f"one-sided lower bound of the mean gain above 0 at level {level:g}"
    if sweep.chance is not None:
        rule += ", and an exact sign test of the changed answers at that level"
    return Choice(
        parameters={**parameters, **on_heads(kept)},
        account={"rule": rule, "sweep": sweep.table()},
        compared={f"{method} on {others}": intervention | bench.everywhere},
    )


def _helps(sweep: Sweep, level: float) -> np.ndarray:
    """bool, as `Sweep.gains`."""
    helps: np.ndarray = sweep.lower > 0
    if sweep.chance is not None:
        # A level such as 0.9 leaves 1 - 0.9 a little below 0.1.
        helps &= sweep.chance <= 1 - level + 1e-12
    return helps


def heat_map(sweep: Sweep) -> str:
    """The gains as lines of signed numbers, in thousandths, a layer each."""
    lines = ["gain by layer and head, in thousandths:"]
    lines += [
        f"  layer {layer:2}: " + " ".join(f"{round(1000 * gain):+5d}" for gain in row)
        for layer, row in zip(sweep.layers, sweep.gains, strict=True)
    ]
    return "\n".join(lines)
