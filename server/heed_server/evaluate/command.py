"""`heed eval`, from its arguments to tables."""

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from heed_server.evaluate.forest import forest
from heed_server.evaluate.measuring import Measured, measured
from heed_server.evaluate.report import compared_with_none, of_items, tables
from heed_server.evaluate.settings import settings_of, uses_spans_of_items
from heed_server.evaluate.tasks import Task, files_of, kind_of, read
from heed_server.profiles.identity import ModelIdentity, Serving
from heed_server.progress import Progress
from heed_server.scoring.calls import Setting
from heed_server.scoring.client import Client
from heed_server.scoring.data import Item, file_digest, require_emphasis
from heed_server.scoring.errors import ScoringError
from heed_server.scoring.local_server import server_at
from heed_server.scoring.prompts import prepare
from heed_server.scoring.scorer import Scorer
from heed_server.whole_files import write_whole


def evaluate(options: argparse.Namespace) -> None:
    """Measure; the tables go to standard output, the progress to standard error.

    Raises:
        ScoringError: the data, a setting or the server is not usable.
    """
    settings = settings_of(options.interventions)
    files = files_of(options)
    items = read(files, options.seed, options.limit)
    if any(uses_spans_of_items(setting) for setting in settings.values()):
        require_emphasis(item for found in items.values() for item in found)
    for file in (options.json, options.plot):
        if file is not None and not file.parent.is_dir():
            raise ScoringError(f"there is no directory {file.parent}")
    # Its own server is for nobody else.
    flags = ["--allow-privileged-interventions", *options.flags]
    with server_at(options.url, options.model, flags) as url:
        served, tasks, by_task = asyncio.run(_run(options, url, items, settings))
    found = compared_with_none(tasks, by_task, options.seed)
    sys.stdout.write(tables(found) + "\n")
    if options.json is not None:
        document = _described(options, served, files, settings) | {
            "tasks": found,
            "items": of_items(tasks, by_task),
        }
        write_whole(options.json, json.dumps(document, indent=1) + "\n")
    if options.plot is not None:
        write_whole(options.plot, forest(found))


async def _run(
    options: argparse.Namespace,
    url: str,
    items: Mapping[str, Sequence[Item]],
    settings: Mapping[str, Setting],
) -> tuple[tuple[ModelIdentity, Serving], dict[str, Task], dict[str, dict[str, Measured]]]:
    progress = Progress(sys.stderr)
    async with Client(url, options.api_key, options.in_flight) as client:
        served = await client.served()
        scorer = Scorer(
            client, batch=options.batch, most_tokens=options.max_tokens, answered=progress.answered
        )
        tasks: dict[str, Task] = {}
        for name, found in items.items():
            prepared = await prepare(client, found, choices=options.score != "text")
            tasks[name] = Task(prepared, kind_of(prepared, options.score))
        return served, tasks, await measured(scorer, progress, tasks, settings)


def _described(
    options: argparse.Namespace,
    served: tuple[ModelIdentity, Serving],
    files: Mapping[str, Path],
    settings: Mapping[str, Setting],
) -> dict[str, Any]:
    model, serving = served
    return {
        "model": model.model_dump(),
        "serving": serving.model_dump(),
        "settings": {name: list(setting) for name, setting in settings.items()},
        "data": {task: file_digest(file) for task, file in files.items()},
        "limit": options.limit,
        "seed": options.seed,
        "max_tokens": options.max_tokens,
    }
