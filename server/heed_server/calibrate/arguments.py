"""The command line of `heed calibrate`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from heed_interventions.errors import InterventionError
from heed_interventions.parse import parse_one
from heed_interventions.registry import METHODS
from heed_kernels.edits import SOURCES
from heed_server.argument_types import natural, positive, two_or_more

GAMMAS = "0.3,0.6,1.5,2,3,5"
MOST_LAYERS = 10_000
"""More than any model has; a range beyond it is a slip of the keys."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `calibrate` with one subcommand for each method that can be calibrated."""
    calibrate = commands.add_parser(
        "calibrate", help="find a method's heads and parameters on data, and write a profile"
    )
    methods = calibrate.add_subparsers(dest="method", required=True, metavar="METHOD")

    zerotuning = methods.add_parser("zerotuning", help="heads of the dominant type, and gamma")
    zerotuning.add_argument("--gammas", type=_gammas, default=GAMMAS, help=f"grid [{GAMMAS}]")
    zerotuning.add_argument(
        "--probe",
        type=_above_one,
        default=2.0,
        help="gamma at which heads are profiled, above 1 [2]",
    )
    zerotuning.add_argument(
        "--top-share", type=_share, default=0.4, help="share of the dominant type's heads [0.4]"
    )
    zerotuning.add_argument(
        "--unsupervised",
        action="store_true",
        help="choose by the least mean entropy of the next token; labels are not looked at",
    )

    emphasis = methods.add_parser("emphasis", help="heads that steer well on every task (PASTA)")
    emphasis.add_argument(
        "--alpha",
        type=_parameter("emphasis", "alpha"),
        default=0.01,
        help="factor outside the span [0.01]",
    )
    emphasis.add_argument(
        "--top-share", type=_share, default=0.4, help="share of all heads that a task names [0.4]"
    )

    head_gain = methods.add_parser("head_gain", help="sensitivity map; heads that a gain helps")
    head_gain.add_argument(
        "--gain",
        type=_parameter("head_gain", "gain"),
        default=1.5,
        help="below 1 is privileged [1.5]",
    )

    act = methods.add_parser("act", help="heads whose attention sinks are better calibrated")
    _add_act(act)
    for parser in (zerotuning, emphasis, head_gain, act):
        _add_common(parser)

    var = methods.add_parser("var", help="dimensions of the hidden state that mark sinks")
    _add_var(var)

    sinks = methods.add_parser(
        "sinks", help="mean attention by key: JSON and a heat map; no profile"
    )
    sinks.add_argument("--model", default="heed-tiny", help="run in transformers [heed-tiny]")
    sinks.add_argument("--task", default="needle", help="an evaluation set [needle]")
    sinks.add_argument("--data", type=Path, metavar="FILE", help="JSON lines, in place of a task")
    sinks.add_argument("--limit", type=positive, default=100, help="items at most [100]")
    sinks.add_argument("--tokens", type=two_or_more, default=64, help="of each item [64]")
    sinks.add_argument("--epsilon", type=_share, default=0.3, help="what makes a sink [0.3]")
    sinks.add_argument("--out", type=Path, required=True, metavar="DIR")


def _add_act(parser: argparse.ArgumentParser) -> None:
    """All that says what the heads are tried with; the profile has them all, defaults as well."""
    parser.add_argument(
        "--beta", type=_parameter("act", "beta"), default=0.4, help="what sinks keep [0.4]"
    )
    threshold = parser.add_mutually_exclusive_group()
    threshold.add_argument(
        "--tau", type=_parameter("act", "tau"), help="threshold on a column's mean"
    )
    threshold.add_argument(
        "--alpha-over-n",
        type=_parameter("act", "alpha_over_n"),
        help="the same, divided by the length [5]",
    )
    for flag, default, help_text in (
        ("--stats", "full", "sinks from all prompt rows, or from the rows before [full]"),
        ("--decode", "frozen", "generated rows; matters to greedy texts alone [frozen]"),
        ("--protect", "first_flagged", "which key above the threshold is no sink [first_flagged]"),
    ):
        values = get_args(METHODS["act"].model_fields[flag.removeprefix("--")].annotation)
        parser.add_argument(flag, choices=values, default=default, help=help_text)
    parser.add_argument(
        "--max-sinks",
        type=_parameter("act", "max_sinks", int),
        default=SOURCES,
        help=f"of a head [{SOURCES}]",
    )
    parser.add_argument(
        "--min-rows",
        type=_parameter("act", "min_rows", int),
        default=1,
        help="that see a key, or it is no sink [1]",
    )


def _add_var(parser: argparse.ArgumentParser) -> None:
    _add_server(parser, "its files are run in transformers; served, without --url")
    data = parser.add_argument_group("data")
    source = data.add_mutually_exclusive_group(required=True)
    source.add_argument("--task", help="an evaluation set of heed-tiny")
    source.add_argument(
        "--data", type=Path, metavar="FILE",
        help="JSON lines of {messages}, whose content may have images, or {prompt}",
    )  # fmt: skip
    data.add_argument("--limit", type=positive, default=100, help="items at most [100]")
    parser.add_argument(
        "--tau",
        type=_parameter("var", "tau"),
        default=METHODS["var"].model_fields["tau"].default,
        help="how far a dimension stands out of the hidden state [20]",
    )
    _add_outcome(parser)


def _add_server(parser: argparse.ArgumentParser, model: str) -> None:
    where = parser.add_argument_group("server")
    where.add_argument("--url", help="a running Heed server; without it one is started")
    where.add_argument("--api-key", help="of the running server")
    where.add_argument("--model", default="heed-tiny", help=f"{model} [heed-tiny]")
    where.add_argument("--in-flight", type=positive, default=8, help="requests at once [8]")


def _add_outcome(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    out = parser.add_argument_group("outcome")
    out.add_argument("--name", required=True, help="of the profile")
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="profiles directory")
    out.add_argument("--replace", action="store_true", help="a profile of that name may be there")
    return out


def _add_common(parser: argparse.ArgumentParser) -> None:
    _add_server(parser, "what to serve otherwise")
    parser.add_argument("--batch", type=positive, default=32, help="prompts a request [32]")
    data = parser.add_argument_group("data")
    source = data.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--task",
        action="append",
        default=[],
        help="an evaluation set of heed-tiny; may be repeated",
    )
    source.add_argument(
        "--data", action="append", default=[], type=Path, metavar="FILE",
        help="JSON lines of {prompt | messages, choices | answer}; may be repeated",
    )  # fmt: skip
    data.add_argument("--limit", type=positive, help="items of each task at most")
    data.add_argument("--held-out", type=_share, default=0.5, help="share kept for the end [0.5]")
    data.add_argument("--seed", type=natural, default=0, help="of the split and the bootstrap [0]")
    data.add_argument(
        "--score", choices=("auto", "choices", "text"), default="auto",
        help="by log-probability of the choices, or by the greedy text [choices where there are any]",
    )  # fmt: skip
    data.add_argument("--max-tokens", type=positive, default=24, help="of a greedy text [24]")
    data.add_argument(
        "--objective", choices=("accuracy", "likelihood"), default="accuracy",
        help="what heads are chosen by: share right, or log of the right choice's share [accuracy]",
    )  # fmt: skip
    parser.add_argument(
        "--layers", type=_layers, metavar="0,2-30", help="whose heads are tried [all]"
    )
    parser.add_argument(
        "--level", type=_share, default=0.9, help="of one-sided lower bounds of gains [0.9]"
    )
    out = _add_outcome(parser)
    out.add_argument(
        "--journal", type=Path, metavar="FILE",
        help="what was measured; an interrupted run goes on from it [DIR/.NAME.journal.jsonl]",
    )  # fmt: skip


def _parameter(
    method: str, field: str, kind: Callable[[str], float] = float
) -> Callable[[str], float]:
    """A number that the method takes for `field`; its own bounds hold here as well."""
    beside = METHODS[method].of_the_prompt

    def number(text: str) -> float:
        value = kind(text)
        try:
            parse_one({"method": method, field: value, **beside}, method)
        except InterventionError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return value

    return number


_gamma = _parameter("zerotuning", "gamma")


def _gammas(text: str) -> tuple[float, ...]:
    return tuple(_gamma(part) for part in text.split(","))


def _layers(text: str) -> tuple[int, ...]:
    """Ids, and ranges of them with both ends in it."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        start, end = natural(first), natural(last if dash else first)
        if end < start or end > MOST_LAYERS:
            raise argparse.ArgumentTypeError(f"{part} is no range of layers, as in 2-30")
        found.update(range(start, end + 1))
    return tuple(sorted(found))


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share above 0 and at most 1")
    return value


def _above_one(text: str) -> float:
    value = _gamma(text)
    if value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 1")
    return value
