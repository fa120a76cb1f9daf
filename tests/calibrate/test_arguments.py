"""What the command line of a calibration refuses before anything starts."""

import pytest

from heed_server.cli import main


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
