"""Heads kept when their edit alone helps beyond the noise: for `head_gain` and `act`.

ACT (Yu et al., ICML 2024, arXiv 2406.15765) calibrates one head at a time over the whole set; how its
authors went from those results to their lists is not published. The rule here: a head is kept when its
mean gain is above 0 and the one-sided bootstrap lower bound of the paired gain is at least 0 at the
stated level. The level holds for each head by itself: of many heads that do nothing, some get through,
which is why the set is measured again as a whole, on held-out items.
"""

from typing import Any

import numpy as np

from heed_server.calibrate.bench import Bench, Choice, on_heads
from heed_server.calibrate.errors import CalibrationError


async def choose(bench: Bench, method: str, parameters: dict[str, Any], level: float) -> Choice:
    """Sweep `method` with `parameters` over all heads, and keep those that help.

    Raises:
        CalibrationError: none does; the message carries the map.
    """
    intervention = {"method": method, **parameters}
    sweep = await bench.sweep("one head at a time", intervention, level)
    kept = sweep.ranked((sweep.gains > 0) & (sweep.lower >= 0))
    if not kept:
        raise CalibrationError(
            f"no head alone makes the objective better at level {level:g}\n{heat_map(sweep.gains)}"
        )
    return Choice(
        parameters={**parameters, **on_heads(kept)},
        account={
            "rule": f"mean gain above 0 and one-sided lower bound at least 0 at level {level:g}",
            "sweep": sweep.table(),
        },
        compared={f"{method} on its default heads": intervention},
    )


def heat_map(gains: np.ndarray) -> str:
    """gains [layers, query_heads] as lines of signed numbers, in thousandths."""
    lines = ["gain by layer and head, in thousandths:"]
    lines += [
        f"  layer {layer:2}: " + " ".join(f"{round(1000 * gain):+5d}" for gain in row)
        for layer, row in enumerate(gains)
    ]
    return "\n".join(lines)
