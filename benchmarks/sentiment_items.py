"""Write new sentiment items, like those of heed-tiny's evaluation set and none of them: for `heed eval`.

    python benchmarks/sentiment_items.py OUT.jsonl [--items 2000] [--seed 1]
    heed eval --data OUT.jsonl --interventions '[{"method": "act", "profile": "sentiment"}]' -- --dtype float32

Classes are equally likely. The items are made from the part of the closed world that training never sees.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from heed_server.scoring.data import read_items, task_file
from heed_tiny import tasks


def new_items(count: int, seed: int) -> list[dict[str, Any]]:
    """Half of them positive, no two with the same review."""
    known = {item.messages[0]["content"] for item in read_items(task_file("sentiment"))}
    made: list[dict[str, Any]] = []
    labels: Counter[str] = Counter()
    number = 0
    while len(made) < count:
        drawn = tasks.sample(tasks.sentiment, f"new/{seed}/{number}", [], 0, evaluation=True)
        number += 1
        text = drawn.turns[0]
        if text in known or labels[drawn.answer] >= count / 2:
            continue
        known.add(text)
        labels[drawn.answer] += 1
        made.append(
            {
                "messages": list(drawn.messages),
                "choices": list(drawn.choices),
                "answer": drawn.answer,
            }
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    lines = (json.dumps(item) + "\n" for item in new_items(options.items, options.seed))
    options.out.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
