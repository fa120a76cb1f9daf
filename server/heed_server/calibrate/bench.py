"""What a method's calibration works with: the sweep items, an objective, and sweeps over all heads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from heed_server.calibrate.errors import CalibrationError
from heed_server.calibrate.runner import Runner
from heed_server.scoring.calls import PLAIN, Intervention, Kind, Setting
from heed_server.scoring.prompts import Prepared
from heed_server.scoring.scores import Scores
from heed_server.scoring.statistics import Turned, lower_bounds

Objective = Literal["accuracy", "likelihood", "entropy"]
Head = tuple[int, int]
"""A layer and a query head."""

SAME = 1e-4
"""Scores that differ by less are the same: what conforming kernels may differ by.

An edit that finds nothing to edit still leaves the stock kernel for Heed's, and moves every score by
rounding, by chance all in one direction.
"""


@dataclass(frozen=True)
class Choice:
    """What a method's calibration chose.

    parameters: of the profile. account: how they were found, as plain values.
    compared: other settings worth a look on held-out items, by name.
    """

    parameters: dict[str, Any]
    account: dict[str, Any]
    compared: Mapping[str, Intervention]


@dataclass(frozen=True)
class Sweep:
    """One head at a time against none, on the sweep items.

    layers: ids of those swept. gains: float64 [swept layers, query_heads], mean change of the objective.
    lower: the same, one-sided lower bounds at the level that was asked for.
    chance: the same, the exact sign test's probability that so many of the answers that change are
        mended by chance; None where the objective is not 0/1.
    """

    layers: Sequence[int]
    gains: np.ndarray
    lower: np.ndarray
    chance: np.ndarray | None = None

    def ranked(self, chosen: np.ndarray) -> list[Head]:
        """The heads where `chosen` (bool, as `gains`), by falling gain."""
        places = [(int(line), int(head)) for line, head in np.argwhere(chosen)]
        places.sort(key=lambda place: (-self.gains[place], place))
        return [(self.layers[line], head) for line, head in places]

    def table(self) -> dict[str, Any]:
        """The sweep as plain values."""
        return {
            "gains": np.round(self.gains, 5).tolist(),
            "lower": np.round(self.lower, 5).tolist(),
        }


class Bench:
    """Sweep items of one or several tasks on one model.

    shape: layers and query heads of the model. layers: ids of those whose heads are tried, ascending; None
    for all.

    Raises:
        CalibrationError: the model has no such layer.
    """

    def __init__(
        self,
        runner: Runner,
        tasks: Mapping[str, Sequence[Prepared]],
        *,
        shape: tuple[int, int],
        layers: Sequence[int] | None = None,
        kind: Kind,
        objective: Objective,
        seed: int,
    ) -> None:
        self.tasks = tasks
        all_layers, self.query_heads = shape
        self.layers = tuple(range(all_layers)) if layers is None else tuple(layers)
        if self.layers[-1] >= all_layers:
            raise CalibrationError(
                f"there is no layer {self.layers[-1]}; the model has 0 to {all_layers - 1}"
            )
        self.everywhere: dict[str, Any] = {} if layers is None else {"layers": list(self.layers)}
        """Selector of all heads that are tried; empty where the method's own default is meant."""
        self.objective = objective
        self.runner = runner
        self._kind = kind
        self._seed = seed

    @property
    def items(self) -> list[Prepared]:
        """Those of all tasks."""
        return [item for items in self.tasks.values() for item in items]

    def heads(self) -> Iterator[Head]:
        """Every pair that is tried."""
        return ((layer, head) for layer in self.layers for head in range(self.query_heads))

    async def sweep(
        self,
        what: str,
        intervention: Intervention,
        level: float,
        items: Sequence[Prepared] | None = None,
    ) -> Sweep:
        """`intervention` on one head at a time, on `items` or on those of all tasks.

        level: of the lower bounds.
        """
        items = self.items if items is None else items
        settings = [PLAIN, *([{**intervention, **on_heads([pair])}] for pair in self.heads())]
        base, *each = [
            objective_of(scores, self.objective)
            for scores in await self.runner.measure(what, settings, items, self._kind)
        ]
        differences = np.array(each) - base
        differences[np.abs(differences) < SAME] = 0
        shape = (len(self.layers), self.query_heads)
        lower = lower_bounds(differences, level, self._seed).reshape(shape)
        chance = None
        if self.objective == "accuracy":
            chance = np.array([Turned.of(row).p_better() for row in differences]).reshape(shape)
        return Sweep(self.layers, differences.mean(axis=1).reshape(shape), lower, chance)

    async def means(self, what: str, settings: Sequence[Setting]) -> list[float]:
        """The objective's mean over the items under each setting."""
        measured = await self.runner.measure(what, settings, self.items, self._kind)
        return [float(objective_of(scores, self.objective).mean()) for scores in measured]


def on_heads(heads: Sequence[Head]) -> dict[str, Any]:
    """The selector `heads` for these pairs."""
    chosen: dict[str, list[int]] = {}
    for layer, head in sorted(heads):
        chosen.setdefault(str(layer), []).append(head)
    return {"heads": chosen}


def objective_of(scores: Scores, objective: Objective) -> np.ndarray:
    """float64 [items]; more is better, so that entropy counts negative."""
    if objective == "accuracy":
        return scores.right
    return scores.likelihood if objective == "likelihood" else -scores.entropy
