"""The map of a sweep: what one head alone gains, by layer and head, as JSON and as a picture."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heed_server.calibrate.bench import Objective, Sweep
from heed_server.calibrate.heat_map import gain_map
from heed_server.whole_files import write_whole


def write_map(
    out: Path, name: str, objective: Objective, tried: Mapping[str, Any], sweep: Sweep
) -> None:
    """Write `NAME.map.json` and `NAME.map.svg` to the directory `out`, and say so on standard output.

    tried: the method and the parameters that each head was tried with.
    """
    out.mkdir(parents=True, exist_ok=True)
    document = {
        **tried,
        "objective": objective,
        "layers": list(sweep.layers),
        **sweep.table(),
    }
    values, picture = out / f"{name}.map.json", out / f"{name}.map.svg"
    write_whole(values, json.dumps(document) + "\n")
    write_whole(picture, gain_map(sweep.layers, sweep.gains, objective))
    sys.stdout.write(f"map written to {values} and {picture}\n")
