"""Before and after, on items that the choice has not seen."""

from collections.abc import Mapping, Sequence
from typing import Any

from heed_server.calibrate.bench import Objective
from heed_server.calibrate.runner import Runner
from heed_server.scoring.calls import PLAIN, Intervention, Kind, Setting
from heed_server.scoring.comparison import (
    ACCURACY,
    Row,
    cells,
    compared,
    heads,
    measures_of,
    table,
)
from heed_server.scoring.prompts import Prepared
from heed_server.scoring.scores import Scores
from heed_server.scoring.statistics import SPREAD

NONE = "none"
PROFILE = "profile"


async def evaluate(
    runner: Runner,
    tasks: Mapping[str, Sequence[Prepared]],
    kinds: Sequence[Kind],
    chosen: Intervention,
    others: Mapping[str, Intervention],
    seed: int,
) -> dict[str, Any]:
    """Every setting on the held-out items of each task, as plain values.

    kinds: how they are scored; what the first says nothing of is taken from the next.
    """
    edited = {PROFILE: chosen, **others}
    settings: dict[str, Setting] = {NONE: PLAIN, **{name: [one] for name, one in edited.items()}}
    found: dict[str, Any] = {}
    for task, items in tasks.items():
        measured = [Scores.unknown(len(items))] * len(settings)
        for kind in kinds:
            what = f"held out, {task}" + (f", {kind}" if len(kinds) > 1 else "")
            found_now = await runner.measure(what, list(settings.values()), items, kind)
            measured = [before.filled(now) for before, now in zip(measured, found_now, strict=True)]
        plain, *_ = measures = [measures_of(scores) for scores in measured]
        rows = {
            name: compared(each, plain, seed) for name, each in zip(settings, measures, strict=True)
        }
        found[task] = {"items": len(items), "settings": rows}
    return found


def warnings(evaluation: Mapping[str, Any], objective: Objective) -> list[str]:
    """What a person should know before using the profile: where it did not help on held-out items.

    The objective has to gain beyond the noise; the accuracy, where it is another measure, must not fall.
    """
    said: list[str] = []
    for task, found in evaluation.items():
        row: Row = found["settings"][PROFILE]
        for measure in dict.fromkeys((objective, ACCURACY)):
            if measure not in row:
                continue
            gain, *bounds = (_gain(measure, value) for value in row[measure]["difference"])
            if gain < 0:
                said.append(f"{task}: the {measure} is worse with the profile than without")
            elif measure == objective and not _beyond_noise(row[measure], min(bounds)):
                said.append(f"{task}: the {measure} gains nothing beyond the noise")
    return said


def _gain(measure: str, difference: float) -> float:
    return -difference if measure == "entropy" else difference


def _beyond_noise(found: Mapping[str, Any], low: float) -> bool:
    return low > 0 and found.get("p", 0) <= 1 - SPREAD


def tables(evaluation: Mapping[str, Any]) -> str:
    """The evaluation as Markdown, one table for each task and measure."""
    parts: list[str] = []
    for task, found in evaluation.items():
        for measure in found["settings"][NONE]:
            rows = [[name, *cells(measure, row)] for name, row in found["settings"].items()]
            parts.append(
                f"{task}, {found['items']} held-out items: {measure}\n\n"
                f"{table(['setting', *heads(measure)], rows)}\n\n"
            )
    return "".join(parts)
