"""The command line of `heed eval`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from heed_server.argument_types import natural, positive
from heed_server.evaluate.settings import Named, named_settings
from heed_server.scoring.errors import ScoringError


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `eval`."""
    parser = commands.add_parser(
        "eval",
        help="compare answers under interventions with the plain ones, on evaluation sets or your data",
        epilog="What follows -- goes to the server that is started: heed eval … -- --dtype bfloat16",
    )
    parser.add_argument(
        "--interventions", action="append", required=True, type=_settings, metavar="JSON",
        help="a list of interventions, or an object of such lists by name, or a file of either; "
        "NAME=JSON names a list; may be repeated",
    )  # fmt: skip
    where = parser.add_argument_group("server")
    where.add_argument("--url", help="a running Heed server; without it one is started")
    where.add_argument("--api-key", help="of the running server")
    where.add_argument(
        "--model", default="heed-tiny", help="what to serve otherwise; whose --task [heed-tiny]"
    )
    where.add_argument("--batch", type=positive, default=32, help="prompts a request [32]")
    where.add_argument("--in-flight", type=positive, default=8, help="requests at once [8]")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--task", action="append", default=[],
        help="an evaluation set of the bundled model, or all; may be repeated",
    )  # fmt: skip
    data.add_argument(
        "--data", action="append", default=[], type=Path, metavar="FILE",
        help="JSON lines of {prompt | messages | question, choices, answer}; may be repeated",
    )  # fmt: skip
    data.add_argument("--limit", type=positive, help="items of each task at most, drawn by --seed")
    data.add_argument("--seed", type=natural, default=0, help="of --limit and the bootstrap [0]")
    data.add_argument(
        "--score", choices=("auto", "choices", "text"), default="auto",
        help="by log-probability of the choices, or by the greedy text [choices where each is one "
        "token]",
    )  # fmt: skip
    data.add_argument("--max-tokens", type=positive, default=64, help="of a greedy text [64]")
    out = parser.add_argument_group("outcome")
    out.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured there")
    out.add_argument("--plot", type=Path, metavar="FILE", help="also draw it there, as SVG")


def check(options: argparse.Namespace, fail: Callable[[str], NoReturn]) -> None:
    """What the arguments come to together. fail: the parser's, which ends with 2."""
    if not (options.task or options.data):
        fail("eval: there is nothing to evaluate on: give a --task or --data")
    if options.url is not None and options.flags:
        fail("eval: what follows -- is for a server that is started, not for a running one")


def _settings(text: str) -> list[Named]:
    try:
        return named_settings(text)
    except ScoringError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
