"""What the command line of a calibration says, and what it refuses before anything starts."""

import argparse
from typing import Any

import pytest

from heed_server.calibrate.arguments import add_parser
from heed_server.calibrate.command import method_parameters
from heed_server.cli import main


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    given = ["calibrate", *arguments, "--task", "sentiment", "--name", "x", "--out", "y"]
    return parser.parse_args(given)


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        ((), {}),
        (("--alpha-over-n", "2"), {"alpha_over_n": 2.0}),
        (("--tau", "0.1", "--beta", "0"), {"tau": 0.1, "beta": 0.0}),
        (("--stats", "causal", "--decode", "off"), {"stats": "causal", "decode": "off"}),
        (("--protect", "position_0"), {"protect": "position_0"}),
        (("--max-sinks", "8", "--min-rows", "4"), {"max_sinks": 8, "min_rows": 4}),
    ],
    ids=str,
)
def test_the_profile_of_act_has_all_that_its_heads_were_tried_with(
    arguments: tuple[str, ...], changed: dict[str, Any]
) -> None:
    expected: dict[str, Any] = {
        "beta": 0.4, "stats": "full", "decode": "frozen", "protect": "first_flagged",
        "max_sinks": 64, "min_rows": 1,
    }  # fmt: skip
    if "tau" not in changed:
        expected["alpha_over_n"] = 5.0
    assert method_parameters(parsed("act", *arguments)) == expected | changed


def test_layers_are_ids_and_ranges() -> None:
    assert parsed("act").layers is None
    assert parsed("zerotuning", "--layers", "5,0,2-4,3").layers == (0, 2, 3, 4, 5)


@pytest.mark.parametrize(
    "arguments",
    [
        ("zerotuning", "--seed", "-1"),
        ("zerotuning", "--gammas", "2,nan"),
        ("zerotuning", "--gammas", "2,11"),
        ("zerotuning", "--gammas", ""),
        ("zerotuning", "--probe", "inf"),
        ("emphasis", "--alpha", "-0.1"),
        ("act", "--beta", "1.5"),
        ("act", "--tau", "nan"),
        ("act", "--max-sinks", "65"),
        ("act", "--min-rows", "0.5"),
        ("act", "--stats", "partial"),
        ("act", "--layers", "4-2"),
        ("act", "--layers", "-1"),
        ("head_gain", "--layers", "0-99999999999"),
        ("head_gain", "--gain", "5"),
        ("sinks", "--tokens", "1"),
    ],
    ids=" ".join,
)
def test_a_value_out_of_bounds_is_named(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["calibrate", *arguments, "--task", "sentiment", "--name", "x", "--out", "absent"])
    assert exit_.value.code == 2
    assert f"argument {arguments[1]}: " in capsys.readouterr().err
