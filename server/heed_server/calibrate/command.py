"""`heed calibrate`, from its arguments to a profile."""

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from heed_interventions.act import DEFAULT_ALPHA
from heed_server.calibrate import emphasis, kept_heads, zerotuning
from heed_server.calibrate.bench import Bench, Choice, Objective
from heed_server.calibrate.errors import CalibrationError
from heed_server.calibrate.evaluation import evaluate, tables, warnings
from heed_server.calibrate.journal import Journal, digest
from heed_server.calibrate.parts import split
from heed_server.calibrate.runner import Runner
from heed_server.calibrate.sensitivity import write_map
from heed_server.profiles.identity import ModelIdentity, Serving
from heed_server.profiles.profile import SCHEMA, Profile, ProfileError, is_profile_name
from heed_server.profiles.writing import write_profile
from heed_server.progress import Progress
from heed_server.scoring.answers import TOP
from heed_server.scoring.calls import Kind
from heed_server.scoring.client import Client
from heed_server.scoring.data import (
    Item,
    by_task,
    file_digest,
    read_items,
    require_emphasis,
    task_file,
)
from heed_server.scoring.local_server import server_at
from heed_server.scoring.prompts import Prepared, prepare
from heed_server.version import __version__

ACT_PARAMETERS = ("beta", "stats", "decode", "protect", "max_sinks", "min_rows")
"""What heads are tried with besides the threshold."""

Parts = Mapping[str, tuple[Sequence[Item], Sequence[Item]]]


def calibrate(options: argparse.Namespace) -> None:
    """Run a calibration; what came of it goes to standard output, its progress to standard error.

    Raises:
        ScoringError: the data, the server or the outcome is not usable.
    """
    if not is_profile_name(options.name):
        raise CalibrationError(f"{options.name!r} is no name of a profile")
    if (options.out / options.name).exists() and not options.replace:
        raise CalibrationError(f"there is a profile {options.name} already; --replace it?")
    parts = _read(options)
    privileged = options.method == "head_gain" and options.gain < 1
    flags = ["--allow-privileged-interventions"] if privileged else []
    with server_at(options.url, options.model, flags) as url:
        profile, rates = asyncio.run(_run(options, url, parts))
    try:
        path = write_profile(options.out, profile, replace=options.replace)
    except ProfileError as error:
        raise CalibrationError(str(error)) from error
    sys.stdout.write(f"{tables(profile.evaluation)}\nparameters: {profile.parameters}\n")
    for warning in warnings(profile.evaluation, _objective(options)):
        sys.stdout.write(f"warning: {warning}\n")
    told = ", ".join(f"{rate:.0f} ({stage})" for stage, rate in rates.items())
    sys.stdout.write(f"prompts a second: {told or 'all from the journal'}\n")
    sys.stdout.write(f"written to {path}\n")


def _read(options: argparse.Namespace) -> Parts:
    items = {task: read_items(file) for task, file in _files(options).items()}
    if options.method == "emphasis":
        require_emphasis(item for found in items.values() for item in found)
    return {
        task: split(found, seed=options.seed, limit=options.limit, held_out=options.held_out)
        for task, found in items.items()
    }


def _files(options: argparse.Namespace) -> dict[str, Path]:
    return by_task([*options.data, *(task_file(task) for task in options.task)])


async def _run(
    options: argparse.Namespace, url: str, parts: Parts
) -> tuple[Profile, Mapping[str, float]]:
    path = options.journal or options.out / f".{options.name}.journal.jsonl"
    progress = Progress(sys.stderr)
    with Journal(path) as journal:
        async with Client(url, options.api_key, options.in_flight) as client:
            model, serving = await client.served()
            runner = Runner(
                client, journal, progress, batch=options.batch, most_tokens=options.max_tokens,
                served=digest(model.fingerprint, serving.model_dump()),
            )  # fmt: skip
            swept = {task: await prepare(client, sweep) for task, (sweep, _) in parts.items()}
            held_out = {task: await prepare(client, kept) for task, (_, kept) in parts.items()}
            profile = await _calibrated(options, runner, (model, serving), swept, held_out)
            return profile, runner.rates


async def _calibrated(
    options: argparse.Namespace,
    runner: Runner,
    served: tuple[ModelIdentity, Serving],
    swept: Mapping[str, Sequence[Prepared]],
    held_out: Mapping[str, Sequence[Prepared]],
) -> Profile:
    model, serving = served
    objective = _objective(options)
    kinds = _kinds(options, swept, unsupervised=objective == "entropy")
    kind = kinds[0]
    if objective == "likelihood" and kind == "text":
        raise CalibrationError("the likelihood needs items with choices")
    bench = Bench(
        runner, swept, shape=(model.layers, model.query_heads), layers=options.layers, kind=kind,
        objective=objective, seed=options.seed,
    )  # fmt: skip
    choice = await _choose(options, bench)
    chosen = {"method": options.method, **choice.parameters}
    evaluation = await evaluate(runner, held_out, kinds, chosen, choice.compared, options.seed)
    how: dict[str, Any] = {
        "objective": objective,
        "scored": kind,
        "items": {task: len(items) for task, items in swept.items()},
        "data": {task: file_digest(file) for task, file in _files(options).items()},
        "limit": options.limit,
        "held_out": options.held_out,
        "seed": options.seed,
        "level": options.level,
        "layers": list(bench.layers),
        "dtype": serving.dtype,
        "vllm": serving.vllm,
        "warnings": warnings(evaluation, objective),
    }
    if objective == "entropy":
        how["entropy"] = f"of the {TOP} likeliest next tokens, and all others as one outcome"
    document = {
        "schema": SCHEMA,
        "name": options.name,
        "method": options.method,
        "model": model.model_dump(),
        "parameters": choice.parameters,
        "calibration": how | choice.account,
        "evaluation": evaluation,
        "heed": __version__,
    }
    return Profile.model_validate(document)


def _objective(options: argparse.Namespace) -> Objective:
    chosen: Objective = options.objective
    return "entropy" if getattr(options, "unsupervised", False) else chosen


def _kinds(
    options: argparse.Namespace, tasks: Mapping[str, Sequence[Prepared]], *, unsupervised: bool
) -> list[Kind]:
    """How held-out items are scored; the first is also how the sweep is."""
    items = [item for found in tasks.values() for item in found]
    labelled: Kind = "choices" if all(item.choices for item in items) else "text"
    if options.score != "auto":
        labelled = options.score
    unusable = next((item for item in items if item.item.answer is None), None)
    if labelled == "choices":
        unusable = unusable or next((item for item in items if not item.choices), None)
    if unsupervised:
        return ["entropy"] if unusable else ["entropy", labelled]
    if unusable is not None:
        raise CalibrationError(f"{unusable.item.where}: there is no answer, or no choices")
    return [labelled]


async def _choose(options: argparse.Namespace, bench: Bench) -> Choice:
    if options.method == "zerotuning":
        found = zerotuning.ZeroTuningOptions(
            options.gammas, options.probe, options.top_share, options.level
        )
        return await zerotuning.choose(bench, found)
    if options.method == "emphasis":
        wanted = emphasis.EmphasisOptions(options.alpha, options.top_share, options.level)
        return await emphasis.choose(bench, wanted)
    tried = method_parameters(options)
    what = {"method": options.method, "parameters": tried}
    mapped = partial(write_map, options.out, options.name, bench.objective, what)
    return await kept_heads.choose(bench, options.method, tried, options.level, mapped)


def method_parameters(options: argparse.Namespace) -> dict[str, Any]:
    """What the heads of `head_gain` and `act` are tried with, as a request would write it."""
    if options.method == "head_gain":
        return {"gain": options.gain}
    # Defaults are written down too: the heads were chosen with them, whatever a later version's are.
    if options.tau is not None:
        threshold = {"tau": options.tau}
    else:
        threshold = {"alpha_over_n": options.alpha_over_n or DEFAULT_ALPHA}
    return threshold | {name: getattr(options, name) for name in ACT_PARAMETERS}
