"""Write the held-out evaluation sets that the repository keeps.

    python -m heed_tiny_vision.evaluation_sets OUT

OUT/pictures.zip holds the scenes, drawn; OUT/<task>.jsonl the questions, as `heed eval` reads them. Scenes
are of the evaluation part (`scenes.for_evaluation`); the answers of a task are equally frequent. Choices
are named where the answer is yes or no, of which POPE has measures; all else is answered in words.
"""

import argparse
import json
import random
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from . import questions, scenes
from .pictures import png, render

SCENES = 500
PICTURES = "pictures.zip"
SIZES = {"colour": 450, "count": 448, "place": 432, "existence": 360}
TURNS = 8  # questions of a task that a scene is asked at most

Record = dict[str, Any]


def captions(drawn: list[scenes.Scene]) -> list[Record]:
    return [
        {**asked(number, questions.CAPTION_QUESTION), "objects": list(scene.kinds)}
        for number, scene in enumerate(drawn)
    ]


def asked(number: int, question: str) -> Record:
    """A question about the scene of this number."""
    return {"image": f"{PICTURES}/{number}.png", "question": question}


def balanced(
    task: str, drawn: list[scenes.Scene], ask: Callable[[scenes.Scene], questions.Turn | None]
) -> list[Record]:
    """Different questions, in turn to all scenes, until every answer of the task has its share."""
    records: list[Record] = []
    answers: Counter[str] = Counter()
    known: set[tuple[int, str]] = set()
    for number, scene in chain.from_iterable(repeat(list(enumerate(drawn)), TURNS)):
        turn = ask(scene)
        if turn is None or (number, turn.question) in known:
            continue
        if answers[turn.answer] >= SIZES[task] // len(turn.choices):
            continue
        answers[turn.answer] += 1
        known.add((number, turn.question))
        choices = {"choices": list(turn.choices)} if task == "existence" else {}
        records.append({**asked(number, turn.question), **choices, "answer": turn.answer})
    if len(records) < SIZES[task]:
        raise ValueError(f"{SCENES} scenes give {len(records)} questions of {task} only: {answers}")
    return records


def sampled() -> list[scenes.Scene]:
    return [scenes.sample(f"evaluation/{number}", evaluation=True) for number in range(SCENES)]


def sets(drawn: list[scenes.Scene]) -> Iterator[tuple[str, list[Record]]]:
    """Name and records of every file."""
    yield "caption", captions(drawn)
    for task in ("colour", "count", "place"):
        r = random.Random(f"evaluation/{task}")
        yield task, balanced(task, drawn, partial(questions.ask, task, r=r))
    for name, absent in questions.ABSENT.items():
        r = random.Random(f"evaluation/{name}")
        ask = partial(questions.existence, r=r, absent=absent)
        yield f"existence_{name}", balanced("existence", drawn, ask)


def write_pictures(file: Path, drawn: Iterable[scenes.Scene]) -> None:
    """A ZIP archive of PNGs by the numbers of the scenes; the same bytes each time."""
    with zipfile.ZipFile(file, "w") as archive:
        for number, scene in enumerate(drawn):
            archive.writestr(zipfile.ZipInfo(f"{number}.png"), png(render(scene)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    drawn = sampled()
    for name, records in sets(drawn):
        # The model's directory is to stay small: no spaces.
        lines = (json.dumps(record, separators=(",", ":")) + "\n" for record in records)
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    write_pictures(out / PICTURES, drawn)


if __name__ == "__main__":
    main()
