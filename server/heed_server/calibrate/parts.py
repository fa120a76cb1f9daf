"""Items cut into those that choices are made on, and those that they are measured on."""

import json
from collections import defaultdict
from collections.abc import Sequence

from heed_server.calibrate.errors import CalibrationError
from heed_server.scoring.data import Item, drawn


def split(
    items: Sequence[Item], *, seed: int, limit: int | None, held_out: float
) -> tuple[list[Item], list[Item]]:
    """At most `limit` items in a seeded order, cut into those to sweep and a held-out share.

    Items with the same prompt stay together, so that no prompt is on both sides.

    Raises:
        CalibrationError: one of the parts would be empty.
    """
    shuffled = drawn(items, seed=seed, limit=limit)
    cut = round(len(shuffled) * (1 - held_out))
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in shuffled:
        groups[json.dumps([item.prompt, item.messages], sort_keys=True)].append(item)
    swept: list[Item] = []
    kept: list[Item] = []
    for group in groups.values():
        (swept if len(swept) < cut else kept).extend(group)
    if not swept or not kept:
        raise CalibrationError(
            f"{len(shuffled)} items with a held-out share of {held_out} leave one part empty"
        )
    return swept, kept
