"""Before and after, on items that the choice has not seen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from heed_server.calibrate.bench import Objective
from heed_server.calibrate.prompts import Prepared
from heed_server.calibrate.runner import Runner, Scores
from heed_server.calibrate.scoring import Intervention, Kind
from heed_server.calibrate.statistics import SPREAD, Interval, Turned, interval

PLAIN = "none"
PROFILE = "profile"

Row = dict[str, dict[str, Any]]
"""By measure: mean, low and high under `value`, and of the paired `difference` from none.

Of the accuracy also how many answers were `mended` and `spoiled`, and the `p` of McNemar's exact test.
"""


async def evaluate(
    runner: Runner,
    tasks: Mapping[str, Sequence[Prepared]],
    kinds: Sequence[Kind],
    chosen: Intervention,
    compared: Mapping[str, Intervention],
    seed: int,
) -> dict[str, Any]:
    """Every setting on the held-out items of each task, as plain values.

    kinds: how they are scored; what the first says nothing of is taken from the next.
    """
    settings: dict[str, Intervention | None] = {PLAIN: None, PROFILE: chosen, **compared}
    found: dict[str, Any] = {}
    for task, items in tasks.items():
        measured = [Scores.unknown(len(items))] * len(settings)
        for kind in kinds:
            what = f"held out, {task}" + (f", {kind}" if len(kinds) > 1 else "")
            found_now = await runner.measure(what, list(settings.values()), items, kind)
            measured = [before.filled(now) for before, now in zip(measured, found_now, strict=True)]
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
    row: Row = {
        name: {
            "value": interval(after, seed).rounded(),
            "difference": interval(after - before, seed).rounded(),
        }
        for name, (after, before) in pairs.items()
        if not np.isnan(after).any() and not np.isnan(before).any()
    }
    if "accuracy" in row:
        turned = Turned.of(scores.right - plain.right)
        row["accuracy"] |= {
            "mended": turned.mended,
            "spoiled": turned.spoiled,
            "p": float(f"{turned.p_two_sided():.3g}"),
        }
    return row


def warnings(evaluation: Mapping[str, Any], objective: Objective) -> list[str]:
    """What a person should know before using the profile: where it did not help on held-out items.

    The objective has to gain beyond the noise; the accuracy, where it is another measure, must not fall.
    """
    said: list[str] = []
    for task, found in evaluation.items():
        row: Row = found["settings"][PROFILE]
        for measure in dict.fromkeys((objective, "accuracy")):
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
    lines: list[str] = []
    for task, found in evaluation.items():
        for measure in found["settings"][PLAIN]:
            lines += [
                f"{task}, {found['items']} held-out items: {measure}",
                "",
                f"| setting | {measure} [95 %] | difference [95 %] |",
                "| --- | --- | --- |",
            ]
            if measure == "accuracy":
                lines[-2] += " mended, spoiled | p |"
                lines[-1] += " --- | --- |"
            for name, row in found["settings"].items():
                value = Interval(*row[measure]["value"])
                change = Interval(*row[measure]["difference"])
                lines.append(
                    f"| {name} | {value.mean:.3f} [{value.low:.3f}, {value.high:.3f}] "
                    f"| {change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}] |"
                )
                if measure == "accuracy":
                    turned = row[measure]
                    lines[-1] += f" {turned['mended']}, {turned['spoiled']} | {turned['p']:.2g} |"
            lines.append("")
    return "\n".join(lines)
