"""The tasks of an evaluation: their items, and how they are scored."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from heed_server.scoring.calls import Kind
from heed_server.scoring.data import (
    Item,
    by_task,
    drawn,
    read_items,
    task_file,
    task_files,
)
from heed_server.scoring.errors import ScoringError
from heed_server.scoring.prompts import Prepared

ALL = "all"
WITH_SETS = "heed-tiny"
"""Whose evaluation sets are meant where a model has none of its own."""


@dataclass(frozen=True)
class Task:
    """Items of one file in tokens, and how all of them are scored."""

    items: Sequence[Prepared]
    kind: Kind


def files_of(options: argparse.Namespace) -> Mapping[str, Path]:
    """The files of items by task.

    Raises:
        ScoringError: one of them is there twice, or no such set.
    """
    model = options.model if task_files(options.model) else WITH_SETS
    asked = [name for name in options.task if name != ALL]
    if ALL in options.task:
        asked = list(task_files(model))
    return by_task([*options.data, *(task_file(name, model) for name in asked)])


def read(files: Mapping[str, Path], seed: int, limit: int | None) -> dict[str, list[Item]]:
    """All items by task, or `limit` of each.

    Raises:
        ScoringError: naming the first line that cannot be used, or that nothing can be said about.
    """
    found: dict[str, list[Item]] = {}
    for task, file in files.items():
        items = read_items(file)
        for item in items:
            if item.answer is None and item.objects is None:
                raise ScoringError(f"{item.where}: there is no answer, and there are no objects")
        found[task] = items if limit is None else drawn(items, seed=seed, limit=limit)
    return found


def kind_of(items: Sequence[Prepared], score: str) -> Kind:
    """How a task is scored: `score`, or for "auto" by choices where the next token decides.

    Choices of several tokens stand in the prompt when they are scored, where no row is a generated one.

    Raises:
        ScoringError: naming a line without the choices that were asked for.
    """
    without = next((item for item in items if item.right is None), None)
    if score == "choices":
        if without is not None:
            raise ScoringError(f"{without.item.where}: there are no choices, or no answer")
        return "choices"
    if score == "auto" and without is None and all(item.one_token_choices for item in items):
        return "choices"
    return "text"
