"""The `heed` command."""

import argparse
import json
import sys
from collections.abc import Sequence

from heed_server import launcher
from heed_server.engine.versions import (
    UnsupportedVllmError,
    installed_vllm,
    require_supported_vllm,
)
from heed_server.models import bundled_models
from heed_server.settings import SettingsError
from heed_server.version import __version__


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one `heed` command; exits with 2 on unusable arguments and 1 on a failed start."""
    parser = argparse.ArgumentParser(
        prog="heed", description="Serve language models whose attention every request can edit."
    )
    parser.add_argument("--version", action="version", version=f"heed-server {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve a model (the bundled heed-tiny by default) over the OpenAI API",
        description="Flags that are not listed here are vLLM's own (`heed serve --help=all`).",
        add_help=False,
    )
    launcher.add_arguments(serve)
    models = commands.add_parser("models", help="list the bundled models and their directories")
    models.add_argument("--json", action="store_true", help="as a JSON list")
    options, rest = parser.parse_known_args(arguments)
    if options.command == "models":
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        _list_models(as_json=options.json)
        return
    try:
        require_supported_vllm(installed_vllm())
        launcher.serve(options, rest)
    except (UnsupportedVllmError, SettingsError) as error:
        print(f"heed: {error}", file=sys.stderr)
        sys.exit(2)


def _list_models(*, as_json: bool) -> None:
    models = bundled_models()
    if as_json:
        listed = [{"name": model.name, "directory": str(model.directory)} for model in models]
        print(json.dumps(listed, indent=2))
        return
    for model in models:
        print(f"{model.name}\t{model.directory}")
