"""Write the held-out evaluation sets that the repository keeps.

    python -m heed_tiny.evaluation_sets CACHE OUT        # OUT/<task>.jsonl, OUT/long_text.jsonl

Task items are those of the evaluation part of the closed world (`tasks.for_evaluation`), their
filler is out of the held-out hundredths of the books; classes are equally likely.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer

from . import tasks, text

SIZES = {
    "sentiment": 400,
    "topic": 400,
    "recall": 300,
    "recall_long": 250,
    "needle": 250,
    "membership": 300,
    "emphasis": 400,
    "copy": 200,
}
CLASSIFIED = ("sentiment", "topic", "membership")  # equally many items of every class
LONG = ("recall_long", "needle")
LONG_CHARACTERS = 600  # about 200 tokens
LONG_TEXT_TOKENS = (600, 600, 600, 600, 1000, 1000, 1000, 1800, 1800, 1800, 1800, 3500, 7000)


def items(task: tasks.Task, books: list[str]) -> list[tasks.Item]:
    """The items of one task; `recall_long` and `needle` get filler of some 150 to 900 tokens."""
    name = task.__name__
    books = [book for book in books if len(book) > 6000]
    found: dict[str, tasks.Item] = {}
    labels: Counter[str] = Counter()
    number = 0
    while len(found) < SIZES[name]:
        tokens = 160
        if name in LONG:
            tokens = random.Random(f"length/{name}/{number}").randint(400, 1100)
        item = tasks.sample(task, f"evaluation/{name}/{number}", books, tokens, True)
        number += 1
        if name in LONG and len(item.turns[0]) < LONG_CHARACTERS:
            continue
        if name in CLASSIFIED and labels[item.answer] >= SIZES[name] // len(item.choices):
            continue
        if item.turns[0] not in found:
            found[item.turns[0]] = item
            labels[item.answer] += 1
    return list(found.values())


def long_texts(tokenizer: Tokenizer, books: list[str]) -> list[dict[str, object]]:
    """Passages of the lengths above, the longest books first, none used twice."""
    r = random.Random("long_text")
    remaining = {number: tokenizer.encode(book).ids for number, book in enumerate(books)}
    records = []
    for tokens in sorted(LONG_TEXT_TOKENS, reverse=True):
        possible = [number for number, ids in remaining.items() if len(ids) >= tokens]
        number = r.choice(possible)
        passage, remaining[number] = remaining[number][:tokens], remaining[number][tokens:]
        records.append({"task": "long_text", "text": tokenizer.decode(passage), "tokens": tokens})
    return records


def write(file: Path, records: Iterable[dict[str, object]]) -> None:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    file.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cache", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    books = text.read(arguments.cache / "held_out.txt")
    tokenizer = Tokenizer.from_file(str(arguments.cache / "tokenizer.json"))
    for task in tasks.EVALUATED:
        write(
            arguments.out / f"{task.__name__}.jsonl",
            (item.record() for item in items(task, books)),
        )
    write(arguments.out / "long_text.jsonl", long_texts(tokenizer, books))


if __name__ == "__main__":
    main()
