"""Heads and gamma for ZeroTuning, with labels or without.

Han et al., ICLR 2026, arXiv 2505.11739. Each head is profiled alone at a fixed gamma; heads where the
objective rises when the initial token is scaled up are *up-effective*, those where it rises when it is
scaled down *down-effective*. Only the dominant type is used, of it a top share, all with one gamma out
of a grid. The objective is accuracy on labelled items, or, unsupervised, the least mean entropy of the
next token. The released code profiles head indices over all layers at once; here it is each pair of
layer and head, and both directions are tried at each (gamma and 1/gamma).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heed_server.calibrate.bench import Bench, Choice, on_heads
from heed_server.calibrate.errors import CalibrationError
from heed_server.scoring.calls import PLAIN


@dataclass(frozen=True)
class ZeroTuningOptions:
    """probe: gamma of the profiling, above 1. top_share: of the dominant type's heads.

    level: of the lower bounds of gains, which are written down.
    """

    gammas: Sequence[float]
    probe: float
    top_share: float
    level: float


async def choose(bench: Bench, options: ZeroTuningOptions) -> Choice:
    """Profile, choose the type and its heads, then gamma; all on the sweep items.

    Raises:
        CalibrationError: no head alone makes the objective better.
    """
    up = await bench.sweep("scaled up", _tuned(options.probe), options.level)
    down = await bench.sweep("scaled down", _tuned(1 / options.probe), options.level)
    types = {
        "up": (up, (up.gains > 0) & (up.gains >= down.gains)),
        "down": (down, (down.gains > 0) & (down.gains > up.gains)),
    }
    name = max(types, key=lambda kind: _weight(types[kind][0].gains, types[kind][1]))
    sweep, effective = types[name]
    if not effective.any():
        raise CalibrationError("no head alone makes the objective better, in either direction")
    ranked = sweep.ranked(effective)
    chosen = ranked[: math.ceil(options.top_share * len(ranked))]
    grid = [gamma for gamma in options.gammas if (gamma > 1) == (name == "up") and gamma != 1]
    if not grid:
        raise CalibrationError(f"the grid has no gamma for the {name}-effective heads found")
    plain, *means = await bench.means(
        "gamma", [PLAIN, *([_tuned(gamma) | on_heads(chosen)] for gamma in grid)]
    )
    # Of equals the one that changes least.
    best = max(range(len(grid)), key=lambda index: (means[index], -abs(math.log(grid[index]))))
    account: dict[str, Any] = {
        "rule": f"top {options.top_share:g} of the dominant type's heads, by their gain alone",
        "probe": {"up": options.probe, "down": 1 / options.probe},
        "up_effective": int(types["up"][1].sum()),
        "down_effective": int(types["down"][1].sum()),
        "dominant": name,
        "sweeps": {"up": up.table(), "down": down.table()},
        "grid": {
            "plain": plain,
            **{f"{gamma:g}": mean for gamma, mean in zip(grid, means, strict=True)},
        },
    }
    return Choice(
        parameters={"gamma": float(grid[best]), **on_heads(chosen)},
        account=account,
        compared={f"gamma {grid[best]:g} on all heads": _tuned(grid[best]) | bench.everywhere},
    )


def _tuned(gamma: float) -> dict[str, Any]:
    return {"method": "zerotuning", "gamma": float(gamma)}


def _weight(gains: np.ndarray, effective: np.ndarray) -> tuple[int, float]:
    return int(effective.sum()), float(gains[effective].sum())
