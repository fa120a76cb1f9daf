"""Before and after, on items that the choice has not seen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from heed_server.calibrate.prompts import Prepared
from heed_server.calibrate.runner import Runner, Scores
from heed_server.calibrate.scoring import Intervention, Kind
from heed_server.calibrate.statistics import Interval, interval

PLAIN = "none"
PROFILE = "profile"

Row = dict[str, dict[str, list[float]]]
"""By measure: mean, low and high under `value`, and of the paired `difference` from none."""


async def evaluate(
    runner: Runner,
    tasks: Mapping[str, Sequence[Prepared]],
    kind: Kind,
    chosen: Intervention,
    compared: Mapping[str, Intervention],
    seed: int,
) -> dict[str, Any]:
    """Every setting on the held-out items of each task, as plain values."""
    settings: dict[str, Intervention | None] = {PLAIN: None, PROFILE: chosen, **compared}
    found: dict[str, Any] = {}
    for task, items in tasks.items():
        measured = await runner.measure(f"held out, {task}", list(settings.values()), items, kind)
        rows = {
            name: _row(scores, measured[0], seed)
            for name, scores in zip(settings, measured, strict=True)
        }
        found[task] = {"items": len(items), "settings": rows}
    return found


def _row(scores: Scores, plain: Scores, seed: int) -> Row:
    pairs = {
        "accuracy": (scores.right, plain.right),
        "likelihood": (scores.likelihood, plain.likelihood),
        "entropy": (scores.entropy, plain.entropy),
    }
    return {
        name: {
            "value": interval(after, seed).rounded(),
            "difference": interval(after - before, seed).rounded(),
        }
        for name, (after, before) in pairs.items()
        if not np.isnan(after).any() and not np.isnan(before).any()
    }


def tables(evaluation: Mapping[str, Any]) -> str:
    """The evaluation as Markdown, one table for each task and measure."""
    lines: list[str] = []
    for task, found in evaluation.items():
        for measure in found["settings"][PLAIN]:
            lines += [
                f"{task}, {found['items']} held-out items: {measure}",
                "",
                f"| setting | {measure} [95 %] | difference [95 %] |",
                "| --- | --- | --- |",
            ]
            for name, row in found["settings"].items():
                value = Interval(*row[measure]["value"])
                change = Interval(*row[measure]["difference"])
                lines.append(
                    f"| {name} | {value.mean:.3f} [{value.low:.3f}, {value.high:.3f}] "
                    f"| {change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}] |"
                )
            lines.append("")
    return "\n".join(lines)
