"""The report of `heed eval` over all vision sets, turned: a line for each setting, in points of percent.

    heed eval --model heed-tiny-vision --task all --score text --max-tokens 48 --in-flight 16 \\
        --interventions benchmarks/vision_settings.json --json report.json -- --dtype float32 --enforce-eager
    python benchmarks/vision_tables.py report.json

The first line has what the model does without interventions, the others the difference to it with its
95 % interval, paired by picture.
"""

import json
import sys
from pathlib import Path
from typing import Any

ANSWERS = {
    "colour": ("colour", "accuracy"),
    "count": ("count", "accuracy"),
    "place": ("place", "accuracy"),
    "existence, random": ("existence_random", "accuracy"),
    "popular": ("existence_popular", "accuracy"),
    "adversarial": ("existence_adversarial", "accuracy"),
}
CAPTIONS = {name: ("caption", name) for name in ("CHAIR_S", "CHAIR_I", "recall", "words")}
PLAIN = "none"


def table(tasks: dict[str, Any], columns: dict[str, tuple[str, str]]) -> str:
    lines = [f"| setting | {' | '.join(columns)} |", "|" + " --- |" * (len(columns) + 1)]
    for setting in tasks["caption"]["settings"]:
        cells = [
            _cell(tasks[task]["settings"][setting]["measures"][measure], setting, measure)
            for task, measure in columns.values()
        ]
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(measured: dict[str, list[float]], setting: str, measure: str) -> str:
    scale, digits = (1, 2) if measure == "words" else (100, 1)
    of, sign = ("value", "") if setting == PLAIN else ("difference", "+")
    mean, low, high = (f"{scale * value:{sign}.{digits}f}" for value in measured[of])
    return f"{mean} [{low}, {high}]"


def main() -> None:
    tasks = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["tasks"]
    print(f"{table(tasks, ANSWERS)}\n\n{table(tasks, CAPTIONS)}")


if __name__ == "__main__":
    main()
