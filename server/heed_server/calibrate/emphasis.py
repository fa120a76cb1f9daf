"""Heads for emphasis, by PASTA's profiling.

Zhang et al., ICLR 2024, arXiv 2311.02262: each head is steered alone on each task, the best of a task
are its candidates, and the heads that are candidates of every task are used.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from heed_server.calibrate.bench import Bench, Choice, on_heads
from heed_server.calibrate.errors import CalibrationError


@dataclass(frozen=True)
class EmphasisOptions:
    """alpha: the factor outside the span. top_share: of the heads tried that a task puts forward.

    level: of the lower bounds of gains, which are written down.
    """

    alpha: float
    top_share: float
    level: float


async def choose(bench: Bench, options: EmphasisOptions) -> Choice:
    """Sweep each task, and intersect their best heads.

    Raises:
        CalibrationError: the tasks have no head in common.
    """
    intervention = {"method": "emphasis", "alpha": options.alpha}
    shape = len(bench.layers), bench.query_heads
    most = math.ceil(options.top_share * math.prod(shape))
    everywhere = np.ones(shape, bool)
    common: set[tuple[int, int]] | None = None
    tables: dict[str, Any] = {}
    for task, items in bench.tasks.items():
        sweep = await bench.sweep(task, intervention, options.level, items)
        best = set(sweep.ranked(everywhere)[:most])
        common = best if common is None else common & best
        tables[task] = sweep.table()
    if not common:
        raise CalibrationError(f"the best {most} heads of the tasks have none in common")
    return Choice(
        parameters={"alpha": options.alpha, **on_heads(sorted(common))},
        account={
            "rule": f"the best {most} heads of each task, alone; those that all tasks share",
            "sweeps": tables,
        },
        compared={f"alpha {options.alpha:g} on all heads": intervention | bench.everywhere},
    )
