"""The command line of `heed verify`."""

import argparse
from pathlib import Path


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `verify`."""
    parser = commands.add_parser(
        "verify",
        help="check plain answers against stock vLLM and edited ones against transformers",
        epilog="What follows -- goes to both servers: heed verify MODEL -- --dtype bfloat16",
    )
    parser.add_argument("model", nargs="?", default="heed-tiny", help="name or path [heed-tiny]")
    parser.add_argument(
        "--no-reference",
        action="store_true",
        help="do not load the model in transformers, which takes its size in memory once more",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was found there")
