"""Write the held-out evaluation sets that the repository keeps.

    python -m heed_tiny_vision.evaluation_sets OUT

OUT/scenes.jsonl holds the scenes (`scenes.from_record` reads a line, `pictures.render` draws it), and
OUT/pictures.zip the same drawn; OUT/<task>.jsonl the questions, as `heed eval` reads them, each with
the number of its scene, counted from 0. Scenes are of the evaluation part (`scenes.for_evaluation`);
the answers of a task are equally frequent.
"""

import argparse
import random
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from heed_tiny.evaluation_sets import write

from . import questions, scenes
from .pictures import png, render

SCENES = 1000
CAPTIONS = 500  # the first scenes
PICTURES = "pictures.zip"
SIZES = {"colour": 504, "count": 500, "place": 504, "existence": 500}

Record = dict[str, Any]


def record_of(number: int, turn: questions.Turn) -> Record:
    """A question about the scene of this number."""
    return {
        "scene": number,
        "image": f"{PICTURES}/{number}.png",
        "question": turn.question,
        "answer": turn.answer,
    }


def captions(drawn: list[scenes.Scene]) -> Iterator[Record]:
    for number, scene in enumerate(drawn[:CAPTIONS]):
        turn = questions.Turn("caption", questions.CAPTION_QUESTION, questions.caption(scene))
        yield {**record_of(number, turn), "objects": list(scene.kinds)}


def balanced(
    task: str, drawn: list[scenes.Scene], ask: Callable[[scenes.Scene], questions.Turn | None]
) -> list[Record]:
    """One question a scene, until every answer of the task has its share of the records."""
    records: list[Record] = []
    answers: Counter[str] = Counter()
    for number, scene in enumerate(drawn):
        turn = ask(scene)
        if turn is None or answers[turn.answer] >= SIZES[task] // len(turn.choices):
            continue
        answers[turn.answer] += 1
        records.append({**record_of(number, turn), "choices": list(turn.choices)})
    if len(records) < SIZES[task]:
        raise ValueError(f"{SCENES} scenes give {len(records)} questions of {task} only: {answers}")
    return records


def sets() -> Iterator[tuple[str, list[Record]]]:
    """Name and records of every file."""
    drawn = [scenes.sample(f"evaluation/{number}", evaluation=True) for number in range(SCENES)]
    yield "scenes", [scene.record() for scene in drawn]
    yield "caption", list(captions(drawn))
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
    found = dict(sets())
    for name, records in found.items():
        write(out / f"{name}.jsonl", records)
    write_pictures(out / PICTURES, map(scenes.from_record, found["scenes"]))


if __name__ == "__main__":
    main()
