"""What the shipped ACT profile of sentiment does on many new items: one fixed setting, looked at once.

    python benchmarks/act_accuracy.py [--items 2000] [--seed 1] [--url URL]

The items are made like those of the evaluation set, classes equally likely, from the part of the
closed world that training never sees, and none of them is in the set that the profile was found and
measured on. Scores and intervals are those of `heed calibrate`.
"""

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from heed_server.calibrate.client import Client
from heed_server.calibrate.data import Item, read_items, task_file
from heed_server.calibrate.local_server import local_server
from heed_server.calibrate.prompts import prepare

from heed_server.calibrate.evaluation import evaluate, tables
from heed_server.calibrate.journal import Journal, digest
from heed_server.calibrate.runner import Runner
from heed_server.progress import Progress
from heed_tiny import tasks

PROFILE = {"method": "act", "profile": "sentiment"}
EVERY_HEAD = {"method": "act"}


def main() -> None:
    options = _options()
    items = new_items(options.items, options.seed)
    server = nullcontext(options.url) if options.url else local_server("heed-tiny", [])
    with server as url, tempfile.TemporaryDirectory() as scratch:
        found = asyncio.run(_evaluated(url, items, Path(scratch) / "journal", options.seed))
    print(tables(found))


def new_items(count: int, seed: int) -> list[Item]:
    """Half of them positive, no two with the same review, none of the bundled evaluation set."""
    known = {item.messages[0]["content"] for item in read_items(task_file("sentiment"))}
    made: list[Item] = []
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
        where = f"item {number}"
        made.append(
            Item("new items", where, None, tuple(drawn.messages), drawn.choices, drawn.answer)
        )
    return made


async def _evaluated(url: str, items: list[Item], journal: Path, seed: int) -> dict[str, Any]:
    with Journal(journal) as book:
        async with Client(url, None, in_flight=8) as client:
            model, serving = await client.served()
            runner = Runner(
                client, book, Progress(sys.stderr), batch=32, most_tokens=1,
                served=digest(model.fingerprint, serving.model_dump()),
            )  # fmt: skip
            print(f"heed-tiny in {serving.dtype}, vLLM {serving.vllm}\n")
            prepared = {"sentiment": await prepare(client, items)}
            compared = {"act on its default heads": EVERY_HEAD}
            return await evaluate(runner, prepared, ["choices"], PROFILE, compared, seed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1, help="of the items and the bootstrap")
    parser.add_argument("--url", help="a running server of heed-tiny; without it one is started")
    return parser.parse_args()


if __name__ == "__main__":
    main()
