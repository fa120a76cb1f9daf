"""What was measured, as plain values and as tables."""

from collections.abc import Mapping
from typing import Any

from heed_server.evaluate.measuring import Measured
from heed_server.evaluate.settings import NONE
from heed_server.evaluate.tasks import Task
from heed_server.scoring.comparison import ACCURACY, cells, compared, heads, table

Found = dict[str, dict[str, Any]]
"""By task: `items`, `scored`, and by setting a `comparison.Row` with `items_per_second` beside it."""


def compared_with_none(
    tasks: Mapping[str, Task], measured: Mapping[str, Mapping[str, Measured]], seed: int
) -> Found:
    """Every setting beside none, on the same items."""
    found: Found = {}
    for name, task in tasks.items():
        plain = measured[name][NONE].measures(task)
        found[name] = {
            "items": len(task.items),
            "scored": task.kind,
            "settings": {
                setting: {
                    "measures": compared(each.measures(task), plain, seed),
                    "items_per_second": round(each.rate, 2),
                }
                for setting, each in measured[name].items()
            },
        }
    return found


def tables(found: Found) -> str:
    """The accuracy as one Markdown table, everything else that was measured as another."""
    first, second = [], []
    for task, each in found.items():
        for setting, told in each["settings"].items():
            row = told["measures"]
            if ACCURACY in row:
                scored = [task, str(each["items"]), each["scored"], setting]
                rate = f"{told['items_per_second']:.1f}"
                first.append([*scored, *cells(ACCURACY, row), rate])
        for measure in each["settings"][NONE]["measures"]:
            if measure != ACCURACY:
                second += [
                    [task, measure, setting, *cells(measure, told["measures"])]
                    for setting, told in each["settings"].items()
                ]
    parts = []
    if first:
        parts.append(table(["task", "items", "by", "setting", *heads(ACCURACY), "items/s"], first))
    if second:
        parts.append(table(["task", "measure", "setting", *heads("value")], second))
    return "\n\n".join(parts)


def of_items(
    tasks: Mapping[str, Task], measured: Mapping[str, Mapping[str, Measured]]
) -> dict[str, list[dict[str, Any]]]:
    """By task, what each item's line is, and by setting what was said, and whether it was right."""
    return {
        name: [
            {
                "where": item.item.where,
                "settings": {
                    setting: {"said": each.scores.said[index], "right": _flag(each, index)}
                    for setting, each in measured[name].items()
                },
            }
            for index, item in enumerate(task.items)
        ]
        for name, task in tasks.items()
    }


def _flag(measured: Measured, index: int) -> bool | None:
    """None where the item has no answer, whose score is not a number."""
    right = float(measured.scores.right[index])
    return bool(right) if right == right else None
