"""`heed bench`, from its arguments to a table."""

import argparse
import json
import platform
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from heed_server.bench.shares import arms_of, ratios_of
from heed_server.measuring import rounds, servers
from heed_server.measuring.models import served
from heed_server.progress import Progress
from heed_server.version import __version__
from heed_server.whole_files import write_whole


def bench(options: argparse.Namespace) -> None:
    """Measure; the table goes to standard output, the progress to standard error.

    Raises:
        ServerError: a server did not start.
    """
    model = served(options.model, options.prompt + options.output, options.requests)
    flags = [*model.flags, "--no-enable-prefix-caching", *options.flags]
    arms = arms_of(options.shares, options.requests, options.distinct, options.interventions)
    traffic = rounds.Traffic(options.prompt, options.output, model.vocabulary)
    progress = Progress(sys.stderr)
    measured: list[rounds.Measured] = []
    with servers.raised_signals(), tempfile.TemporaryDirectory(prefix="heed-bench-") as folder:
        for start in range(options.starts):
            sys.stderr.write(f"start {start + 1} of {options.starts}: three servers\n")
            stood = _stand(model.path, flags, Path(folder), start)
            with ExitStack() as running:
                rounds.start_in_turn(stood, start, running)
                # One more round than is counted warms the arms up.
                progress.begin(f"start {start + 1}", options.rounds + 1)
                measured.append(
                    rounds.measure_start(
                        stood, arms, traffic, start, options.rounds,
                        lambda: progress.settled(1),
                    )
                )  # fmt: skip
                progress.end()
    result = _described(options) | rounds.summary(measured, ratios_of(arms))
    sys.stdout.write(rounds.table(_heading(result), result) + "\n")
    if options.json is not None:
        write_whole(options.json, json.dumps(result, indent=1) + "\n")


def _stand(model: str, flags: list[str], folder: Path, start: int) -> dict[str, servers.Server]:
    return {
        # Without the KV split, which Heed turns off too: docs/decisions/0004 has what that costs.
        "stock": servers.stock(model, flags, folder / f"stock-{start}.log", split_kv=False),
        "heed": servers.heed(model, flags, folder / f"heed-{start}.log"),
        "control": servers.stock(model, flags, folder / f"control-{start}.log", split_kv=False),
    }


def _described(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "heed": __version__,
        "model": options.model,
        "flags": options.flags,
        "machine": f"{platform.machine()}, {platform.processor() or 'unknown processor'}",
        "requests": options.requests,
        "prompt_tokens": options.prompt,
        "output_tokens": options.output,
        "distinct": options.distinct,
        "interventions": options.interventions,
        "starts": options.starts,
        "rounds": options.rounds,
    }


def _heading(result: dict[str, Any]) -> str:
    return (
        f"{result['model']}: {result['requests']} concurrent requests of {result['prompt_tokens']} + "
        f"{result['output_tokens']} tokens, {result['starts']} starts of {result['rounds']} rounds; "
        f"{result['machine']}"
    )
