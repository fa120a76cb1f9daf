"""`heed bench` without servers: its arms, its arguments, and what it makes of the times."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heed_server import cli
from heed_server.bench import command
from heed_server.bench.shares import arms_of, ratios_of
from heed_server.measuring import rounds
from heed_server.measuring.load import Seen

DISTINCT = [[{"method": "zerotuning", "gamma": gamma}] for gamma in (1.5, 2.0)]


def test_a_share_is_spread_over_the_burst() -> None:
    arms = arms_of([0.25, 1.0], requests=8, distinct=2, interventions=None)
    assert list(arms) == [
        "stock plain", "control plain", "heed plain", "heed 25% edited", "heed 100% edited",
    ]  # fmt: skip
    quarter, whole = (arms[f"heed {share} edited"].interventions for share in ("25%", "100%"))
    assert [place for place, edits in enumerate(quarter) if edits] == [0, 4]
    assert [quarter[0], quarter[4]] == DISTINCT
    assert list(whole) == DISTINCT * 4


def test_a_small_share_has_one_edited_request() -> None:
    arm = arms_of([0.01], requests=8, distinct=5, interventions=None)["heed 1% edited"]
    assert sum(edits is not None for edits in arm.interventions) == 1


def test_given_interventions_take_the_place_of_zerotuning() -> None:
    edits: list[dict[str, Any]] = [{"method": "snapkv", "keep": 0.5}]
    arm = arms_of([0.5], requests=2, distinct=3, interventions=edits)["heed 50% edited"]
    assert list(arm.interventions) == [edits, None]


def measured(factors: dict[str, float], rounds_: int = 3) -> rounds.Measured:
    return {
        arm: {phase: [factor] * rounds_ for phase in (*rounds.PHASES, rounds.API)}
        for arm, factor in factors.items()
    }


def test_ratios_are_of_speeds_paired_within_rounds() -> None:
    one = measured({"a": 2.0, "b": 1.0})
    assert rounds.ratio([one, one], "a", ["b"], "total") == {"median": 0.5, "low": 0.5, "high": 0.5}
    result = rounds.summary([one], [("a / b", "a", "b")])
    assert "| a / b | 0.500 [0.500, 0.500] |" in rounds.table("heading", result)
    assert result["medians"]["a"]["prefill"] == 2.0


class StandIn:
    """A server whose every burst takes a second, Heed's edited ones two."""

    url = "http://stand-in"

    def __enter__(self) -> "StandIn":
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def api_seconds(self) -> float:
        return 0.0


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(url: str, burst: Any) -> Seen:
        seconds = 2.0 if any(burst.interventions) else 1.0
        return Seen(np.full(len(burst.prompts), seconds).tolist(), seconds, seconds, seconds)

    monkeypatch.setattr(rounds.load, "run", run)
    monkeypatch.setattr(rounds, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(command, "_stand", lambda *_: dict.fromkeys(SERVERS, StandIn()))


SERVERS = ("stock", "heed", "control")


@pytest.mark.usefixtures("servers")
def test_the_command_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    given = ["--shares", "0.5", "--requests", "4", "--rounds", "2", "--json", str(out)]
    cli.main(["bench", *given, "--", "--dtype", "bfloat16"])
    printed = capsys.readouterr()
    assert "| plain: heed / stock | 1.000 [1.000, 1.000] |" in printed.out
    assert "| 50% edited / plain | 0.500 [0.500, 0.500] |" in printed.out
    assert "start 1: 3 of 3 runs" in printed.err
    found = json.loads(out.read_text())
    assert found["ratios"]["50% edited / plain"]["total"]["median"] == 0.5
    assert found["flags"] == ["--dtype", "bfloat16"] and found["starts"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shares", "0"], "above 0"),
        (["--shares", "1,1"], "different"),
        (["--rounds", "0"], "below 1"),
        (["--interventions", "{"], "not JSON"),
        (["--interventions", '[{"method": "zerotuning"}]'], "interventions.0.gamma"),
    ],
)
def test_unusable_arguments_are_named(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["bench", *arguments])
    assert left.value.code == 2 and said in capsys.readouterr().err


def test_a_server_that_does_not_start_ends_with_its_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SystemExit) as left:
        cli.main(["bench"])
    assert left.value.code == 2 and "did not start" in capsys.readouterr().err


def test_nothing_stands_behind_dashes_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["models", "--", "--dtype"])
    assert left.value.code == 2 and "after --" in capsys.readouterr().err


def test_the_ratios_name_arms_that_exist() -> None:
    arms = arms_of([0.5], requests=2, distinct=1, interventions=None)
    for _, above, below in ratios_of(arms):
        assert {above, below} <= set(arms)
