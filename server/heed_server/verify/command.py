"""`heed verify`, from its arguments to a block to paste into a report of a bug."""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from heed_server.engine.versions import installed_vllm
from heed_server.measuring import servers
from heed_server.measuring.models import MeasuredModel, served
from heed_server.progress import Progress
from heed_server.verify import checks
from heed_server.verify.checks import Check, Done, Servers
from heed_server.verify.reference import Reference
from heed_server.version import __version__
from heed_server.whole_files import write_whole

_LONGEST = 512
"""Tokens that the servers are started for; a model may have room for fewer."""


def verify(options: argparse.Namespace) -> bool:
    """Check, and print the block; progress goes to standard error. Whether no check has failed.

    Raises:
        ServerError: a server did not start, or did not answer.
        OSError, ValueError: the model is not known.
    """
    model = served(options.model, _LONGEST, requests=16)
    flags = [*model.flags, *options.flags]
    with servers.raised_signals(), tempfile.TemporaryDirectory(prefix="heed-verify-") as folder:
        stock = servers.stock(model.path, flags, Path(folder) / "stock.log", split_kv=False)
        heed = servers.heed(model.path, flags, Path(folder) / "heed.log")
        with ExitStack() as running:
            for server in (stock, heed):
                _tell(f"starting {server.name}")
                running.enter_context(server)
            found = _found(Servers(stock.url, heed.url), options, model)
    sys.stdout.write(block(found) + "\n")
    if options.json is not None:
        write_whole(options.json, json.dumps(found, indent=1) + "\n")
    return all(check["verdict"] != "fail" for check in found["checks"])


def _found(both: Servers, options: argparse.Namespace, model: MeasuredModel) -> dict[str, Any]:
    told = httpx.get(f"{both.heed}/v1/intervention-profiles", timeout=60).json()
    catalogue = httpx.get(f"{both.heed}/v1/interventions", timeout=60).json()["data"]
    prompts = checks.prompts_below(model.vocabulary, model.longest)
    reasons = {entry["method"]: entry["reason"] for entry in catalogue if not entry["available"]}
    editable = "zerotuning" not in reasons
    of_prompts, of_rounds = len(prompts), 2 * checks.ROUNDS
    results = [
        _checked(
            "identity",
            of_prompts,
            lambda done: checks.identity(both, prompts, done, neutral=editable),
        )
    ]
    if not editable:
        results.append(Check("edits", "unknown", f"none here: {reasons['zerotuning']}"))
    else:
        results.append(
            _checked("isolation", of_rounds, lambda done: checks.isolation(both, prompts, done))
        )
        results.append(
            _reference(both, prompts, model.path, told["serving"]["dtype"])
            if not options.no_reference
            else Check("reference", "unknown", "left out (--no-reference)")
        )
    return {
        "heed": __version__,
        "vllm": installed_vllm(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "model": told["model"] or {"id": options.model},
        "dtype": told["serving"]["dtype"],
        "flags": options.flags,
        "checks": [asdict(check) for check in results],
        "available": [entry["method"] for entry in catalogue if entry["available"]],
        "unavailable": reasons,
    }


def _reference(both: Servers, prompts: list[list[int]], model: str, dtype: str) -> Check:
    _tell("loading the model in transformers")
    try:
        reference = Reference(model, checks.GAMMA)
    except (OSError, ValueError) as error:
        return Check("reference", "unknown", f"transformers cannot load the model: {error}")
    return _checked(
        "reference",
        len(prompts),
        lambda done: checks.reference(both, prompts, done, reference.logprobs, dtype),
    )


def _checked(name: str, steps: int, check: Callable[[Done], Check]) -> Check:
    """steps: how often the check says that it has done one, unless something is wrong."""
    progress = Progress(sys.stderr)
    progress.begin(name, steps)
    result = check(lambda: progress.settled(1))
    progress.end()
    return result


def _tell(line: str) -> None:
    sys.stderr.write(f"{line} …\n")
    sys.stderr.flush()


def block(found: dict[str, Any]) -> str:
    """What was found as a fenced block of text."""
    model = found["model"]
    shape = (
        f", {model['architecture']}, {model['layers']} layers of {model['query_heads']} query and "
        f"{model['kv_heads']} KV heads, {model['fingerprint'][:18]}"
        if "architecture" in model
        else ""
    )
    lines = [
        "```",
        f"heed verify {found['heed']}: vLLM {found['vllm']}, Python {found['python']}, {found['machine']}",
        f"{model['id']}{shape}, served in {found['dtype']}",
        *([f"flags: {' '.join(found['flags'])}"] if found["flags"] else []),
        *(
            f"{each['verdict'].upper():8}{each['name']:11}{each['said']}"
            for each in found["checks"]
        ),
        f"methods: {', '.join(found['available']) or 'none'}",
    ]
    by_reason: dict[str, list[str]] = {}
    for method, reason in found["unavailable"].items():
        by_reason.setdefault(reason, []).append(method)
    lines += [f"not here: {', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    return "\n".join([*lines, "```"])
