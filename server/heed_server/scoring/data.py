"""Items to score: JSON lines, and the sets that come with a bundled model."""

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heed_server.models import bundled_model
from heed_server.scoring.errors import ScoringError
from heed_server.scoring.images import ImageError, question_about

_SOURCES = ("prompt", "messages", "question")


@dataclass(frozen=True)
class Item:
    """One line of data.

    where: file and line, for messages. prompt, messages: one of them.
    answer: the right answer, one of `choices` where there are any; None where it is not known.
    emphasise: text of the prompt that `emphasis` turns attention to.
    objects: what an image shows, in the words of a caption; None where it is not told.
    """

    task: str
    where: str
    prompt: str | None
    messages: tuple[dict[str, Any], ...] | None
    choices: tuple[str, ...] = ()
    answer: str | None = None
    emphasise: str | None = None
    objects: tuple[str, ...] | None = None

    @property
    def has_images(self) -> bool:
        """Whether there is more in the messages than text."""
        return any(
            isinstance(part, dict) and part.get("type") != "text"
            for message in self.messages or ()
            if isinstance(message["content"], list)
            for part in message["content"]
        )

    def chat(self, said: str | None = None) -> list[dict[str, Any]]:
        """The messages, and behind them what the assistant has begun to say."""
        behind = [] if said is None else [{"role": "assistant", "content": said}]
        return [*(self.messages or ()), *behind]


def read_items(path: Path) -> list[Item]:
    """All items of a file; the task's name is the file's.

    Raises:
        ScoringError: naming the first line that cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScoringError(f"{path}: {error}") from error
    if not text.strip():
        raise ScoringError(f"{path}: there are no items in it")
    # Not splitlines(): JSON strings may hold other line separators.
    lines = text.removesuffix("\n").split("\n")
    return [
        _item(line, path, f"{path.name}, line {number}") for number, line in enumerate(lines, 1)
    ]


def by_task(files: Iterable[Path]) -> dict[str, Path]:
    """Files by the names of their tasks. Raises `ScoringError` where two have the same."""
    found: dict[str, Path] = {}
    for file in files:
        if file.stem in found:
            raise ScoringError(
                f"{found[file.stem]} and {file} would both be the task {file.stem}: name the files "
                "differently, and each once"
            )
        found[file.stem] = file
    return found


def task_file(task: str, model: str = "heed-tiny") -> Path:
    """The file of an evaluation set that comes with a bundled model. Raises `ScoringError`."""
    files = task_files(model)
    if task not in files:
        raise ScoringError(f"there is no task {task!r}; there are {', '.join(files)}")
    return files[task]


def task_files(model: str) -> dict[str, Path]:
    """The evaluation sets of a bundled model that can be scored, by name; none of other models."""
    bundled = bundled_model(model)
    found = sorted(bundled.evaluation.glob("*.jsonl")) if bundled else []
    return {path.stem: path for path in found if _can_be_scored(path)}


def drawn(items: Sequence[Item], *, seed: int, limit: int | None) -> list[Item]:
    """At most `limit` items, in a seeded order."""
    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)
    return shuffled[:limit]


def file_digest(file: Path) -> str:
    """SHA-256 of a file of items, as it is written down."""
    return "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()


def require_emphasis(items: Iterable[Item]) -> None:
    """Raises `ScoringError` naming the first line that has no span for `emphasis`."""
    for item in items:
        if item.emphasise is None:
            raise ScoringError(f"{item.where}: emphasis needs `emphasise`")


def _can_be_scored(path: Path) -> bool:
    """Whether the items have answers, or objects that captions are compared with: texts to be continued do not."""
    with path.open(encoding="utf-8") as lines:
        first = json.loads(next(lines))
    return "answer" in first or "objects" in first


def _item(line: str, path: Path, where: str) -> Item:
    def fail(what: str) -> ScoringError:
        return ScoringError(f"{where}: {what}")

    if not line.strip():
        raise fail("the line is empty")
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise fail(f"not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise fail("an item is a JSON object")
    if sum(found.get(source) is not None for source in _SOURCES) != 1:
        raise fail("an item has either a prompt or messages, or a question")
    for field in ("prompt", "question", "image", "emphasise"):
        value = found.get(field)
        if value is not None and not (isinstance(value, str) and value):
            raise fail(f"{field} must be a text that is not empty")
    prompt, messages, image = found.get("prompt"), found.get("messages"), found.get("image")
    if messages is not None and not _are_messages(messages):
        raise fail("messages must be a list of objects with a role and a content")
    if image is not None and found.get("question") is None:
        raise fail("an image stands beside a question; messages have theirs in their contents")
    if found.get("question") is not None:
        try:
            messages = [question_about(image, found["question"], path.parent)]
        except ImageError as error:
            raise fail(str(error)) from error
    choices, answer = found.get("choices") or [], found.get("answer")
    if not _are_texts(choices):
        raise fail("choices must be a list of texts that are not empty")
    if len(choices) == 1 or len(set(choices)) < len(choices):
        raise fail("choices must be two or more, all different")
    if answer is not None and not isinstance(answer, str):
        raise fail("the answer must be a text")
    if answer is not None and choices and answer not in choices:
        raise fail(f"the answer {answer!r} is none of the choices")
    emphasise, objects = found.get("emphasise"), found.get("objects")
    if emphasise is not None and emphasise not in _text(prompt, messages):
        raise fail("what is to be emphasised does not stand in the prompt")
    if objects is not None and not _are_texts(objects):
        raise fail("objects must be a list of texts that are not empty")
    return Item(
        path.stem, where, prompt, tuple(messages) if messages is not None else None,
        tuple(choices), answer, emphasise, tuple(objects) if objects is not None else None,
    )  # fmt: skip


def _text(prompt: str | None, messages: Sequence[dict[str, Any]] | None) -> str:
    return prompt or "\n".join(str(message["content"]) for message in messages or [])


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and "role" in m and "content" in m for m in value)
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) and each for each in value)
