"""Items to calibrate on: JSON lines, the sets that come with a bundled model, and their two parts."""

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heed_server.calibrate.errors import CalibrationError
from heed_server.models import bundled_model


@dataclass(frozen=True)
class Item:
    """One line of data.

    where: file and line, for messages. prompt, messages: one of them.
    answer: the right answer, one of `choices` where there are any; None where it is not known.
    emphasise: text of the prompt that `emphasis` turns attention to.
    """

    task: str
    where: str
    prompt: str | None
    messages: tuple[dict[str, Any], ...] | None
    choices: tuple[str, ...] = ()
    answer: str | None = None
    emphasise: str | None = None


def read_items(path: Path) -> list[Item]:
    """All items of a file; the task's name is the file's.

    Raises:
        CalibrationError: naming the first line that cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path}: {error}") from error
    if not text.strip():
        raise CalibrationError(f"{path}: there are no items in it")
    # Not splitlines(): JSON strings may hold other line separators.
    lines = text.removesuffix("\n").split("\n")
    return [
        _item(line, path.stem, f"{path.name}, line {number}")
        for number, line in enumerate(lines, 1)
    ]


def by_task(files: Iterable[Path]) -> dict[str, Path]:
    """Files by the names of their tasks. Raises `CalibrationError` where two have the same."""
    found: dict[str, Path] = {}
    for file in files:
        if file.stem in found:
            raise CalibrationError(
                f"{found[file.stem]} and {file} would both be the task {file.stem}: name the files "
                "differently, and each once"
            )
        found[file.stem] = file
    return found


def task_file(task: str, model: str = "heed-tiny") -> Path:
    """The file of an evaluation set that comes with a bundled model. Raises `CalibrationError`."""
    bundled = bundled_model(model)
    files = {path.stem: path for path in bundled.evaluation.glob("*.jsonl")} if bundled else {}
    if task not in files:
        raise CalibrationError(f"there is no task {task!r}; there are {', '.join(sorted(files))}")
    return files[task]


def split(
    items: Sequence[Item], *, seed: int, limit: int | None, held_out: float
) -> tuple[list[Item], list[Item]]:
    """At most `limit` items in a seeded order, cut into those to sweep and a held-out share.

    Items with the same prompt stay together, so that no prompt is on both sides.

    Raises:
        CalibrationError: one of the parts would be empty.
    """
    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)
    shuffled = shuffled[:limit]
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


def _item(line: str, task: str, where: str) -> Item:
    def fail(what: str) -> CalibrationError:
        return CalibrationError(f"{where}: {what}")

    if not line.strip():
        raise fail("the line is empty")
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise fail(f"not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise fail("an item is a JSON object")
    prompt, messages = found.get("prompt"), found.get("messages")
    if (prompt is None) == (messages is None):
        raise fail("an item has either a prompt or messages")
    if prompt is not None and not (isinstance(prompt, str) and prompt):
        raise fail("the prompt must be a text that is not empty")
    if messages is not None and not _are_messages(messages):
        raise fail("messages must be a list of objects with a role and a content")
    choices = found.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(c, str) and c for c in choices):
        raise fail("choices must be a list of texts that are not empty")
    if len(choices) == 1 or len(set(choices)) < len(choices):
        raise fail("choices must be two or more, all different")
    answer, emphasise = found.get("answer"), found.get("emphasise")
    if answer is not None and not isinstance(answer, str):
        raise fail("the answer must be a text")
    if answer is not None and choices and answer not in choices:
        raise fail(f"the answer {answer!r} is none of the choices")
    if emphasise is not None and not (isinstance(emphasise, str) and emphasise):
        raise fail("emphasise must be a text that is not empty")
    if emphasise is not None and emphasise not in _text(prompt, messages):
        raise fail("what is to be emphasised does not stand in the prompt")
    said = tuple(messages) if messages is not None else None
    return Item(task, where, prompt, said, tuple(choices), answer, emphasise)


def _text(prompt: str | None, messages: list[dict[str, Any]] | None) -> str:
    return prompt or "\n".join(str(message["content"]) for message in messages or [])


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and "role" in m and "content" in m for m in value)
    )
