"""The command line of `heed bench`."""

import argparse
import json
from pathlib import Path
from typing import Any

from heed_interventions.errors import InterventionError
from heed_interventions.parse import parse
from heed_server.argument_types import positive


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `bench`."""
    parser = commands.add_parser(
        "bench",
        help="compare serving speed with stock vLLM: plain and edited traffic in interleaved rounds",
        epilog="What follows -- goes to both servers: heed bench MODEL -- --dtype bfloat16",
    )
    parser.add_argument("model", nargs="?", default="heed-tiny", help="name or path [heed-tiny]")
    parser.add_argument(
        "--shares",
        type=_shares,
        default=[0.5, 1.0],
        help="shares of edited requests, each an arm of its own [0.5,1]",
    )
    parser.add_argument(
        "--distinct",
        type=positive,
        default=1,
        help="different sets of edits among the edited requests [1]",
    )
    parser.add_argument(
        "--interventions",
        type=_interventions,
        metavar="JSON",
        help="what edited requests carry, in place of zerotuning; then --distinct is 1",
    )
    parser.add_argument("--requests", type=positive, default=16, help="in a burst [16]")
    parser.add_argument("--prompt", type=positive, default=256, help="prompt tokens [256]")
    parser.add_argument("--output", type=positive, default=64, help="tokens sampled [64]")
    parser.add_argument("--starts", type=positive, default=2, help="fresh starts [2]")
    parser.add_argument("--rounds", type=positive, default=5, help="rounds per start [5]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")


def _shares(text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers") from error
    if not all(0 < share <= 1 for share in shares) or len(set(shares)) < len(shares):
        raise argparse.ArgumentTypeError("shares are different numbers above 0 and at most 1")
    return shares


def _interventions(text: str) -> list[dict[str, Any]]:
    try:
        raw = json.loads(text)
        parse(raw)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    except InterventionError as error:
        raise argparse.ArgumentTypeError(f"{error.param}: {error}") from error
    found: list[dict[str, Any]] = raw
    return found
