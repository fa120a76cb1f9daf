"""The `heed` command."""

import argparse
import json
import sys
from collections.abc import Sequence

from heed_server import launcher
from heed_server.bench import arguments as bench_arguments
from heed_server.calibrate import arguments as calibrate_arguments
from heed_server.engine.versions import (
    UnsupportedVllmError,
    installed_vllm,
    require_supported_vllm,
)
from heed_server.evaluate import arguments as evaluate_arguments
from heed_server.models import bundled_models
from heed_server.scoring.errors import ScoringError
from heed_server.settings import SettingsError
from heed_server.verify import arguments as verify_arguments
from heed_server.version import __version__


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one `heed` command.

    Exits with 2 on unusable arguments or settings, or when a server does not start; with 1 when a
    calibration or an evaluation cannot go on, or a verification fails.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["serve"]:
        # Every flag of vLLM's is one of `heed serve`: vLLM's own parser takes them.
        _serve(given[1:])
        return
    # What follows -- is for the servers that a command starts.
    own, flags = _cut(given)
    parser = _parser()
    options = parser.parse_args(own)
    if flags and options.command not in ("bench", "eval", "verify"):
        parser.error(f"{options.command} takes nothing after --")
    options.flags = flags
    if options.command == "calibrate":
        _calibrate(options)
    elif options.command == "eval":
        evaluate_arguments.check(options, parser.error)
        _evaluate(options)
    elif options.command in ("bench", "verify"):
        _measure(options)
    else:
        _list_models(as_json=options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="heed", description="Serve language models whose attention every request can edit."
    )
    parser.add_argument("--version", action="version", version=f"heed-server {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "serve", help="serve a model (the bundled heed-tiny by default) over the OpenAI API"
    )
    calibrate_arguments.add_parser(commands)
    evaluate_arguments.add_parser(commands)
    verify_arguments.add_parser(commands)
    bench_arguments.add_parser(commands)
    models = commands.add_parser("models", help="list the bundled models and their directories")
    models.add_argument("--json", action="store_true", help="as a JSON list")
    return parser


def _serve(arguments: Sequence[str]) -> None:
    try:
        require_supported_vllm(installed_vllm())
        launcher.serve(arguments)
    except (UnsupportedVllmError, SettingsError) as error:
        print(f"heed: {error}", file=sys.stderr)
        sys.exit(2)


def _calibrate(options: argparse.Namespace) -> None:
    from heed_server.calibrate.command import calibrate
    from heed_server.calibrate.sink_dimensions import calibrate_var
    from heed_server.calibrate.sinks import calibrate_sinks

    ways = {"sinks": calibrate_sinks, "var": calibrate_var}
    try:
        ways.get(options.method, calibrate)(options)
    except ScoringError as error:
        print(f"heed: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("heed: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _evaluate(options: argparse.Namespace) -> None:
    from heed_server.evaluate.command import evaluate

    try:
        evaluate(options)
    except ScoringError as error:
        print(f"heed: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("heed: interrupted", file=sys.stderr)
        sys.exit(130)


def _measure(options: argparse.Namespace) -> None:
    from heed_server.bench.command import bench
    from heed_server.verify.command import verify

    try:
        require_supported_vllm(installed_vllm())
        if options.command == "bench":
            bench(options)
        elif not verify(options):
            sys.exit(1)
    except (RuntimeError, OSError, ValueError) as error:
        print(f"heed: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("heed: interrupted", file=sys.stderr)
        sys.exit(130)


def _cut(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before the first --, and what after it."""
    given = list(arguments)
    at = given.index("--") if "--" in given else len(given)
    return given[:at], given[at + 1 :]


def _list_models(*, as_json: bool) -> None:
    models = bundled_models()
    if as_json:
        listed = [{"name": model.name, "directory": str(model.directory)} for model in models]
        print(json.dumps(listed, indent=2))
        return
    for model in models:
        print(f"{model.name}\t{model.directory}")
