"""Keys that a request lets go give memory back, and nobody else's answer changes for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_script import run_engine

from heed_server.models import bundled_model

BLOCK, LAYERS = 32, 6


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    experiments = ["neighbours", "concurrency", "sharing", "replays"]
    directory = tmp_path_factory.mktemp("engine")
    return run_engine("evicting_engine.py", directory, experiments)


def test_plain_requests_have_the_bits_that_they_have_without_evicting_neighbours(
    engine: dict[str, Any],
) -> None:
    found = engine["neighbours"]
    expected = found["alone"]["answers"]
    assert all(expected)
    for name in ("among", "small"):
        assert [found[name]["answers"][place] for place in found["places"]] == expected, name
        assert found[name]["idle"]


def test_evicting_requests_have_the_same_bits_in_a_pool_that_preempts_them(
    engine: dict[str, Any],
) -> None:
    found = engine["neighbours"]
    assert found["small"]["preemptions"] > 0
    assert found["small"]["answers"] == found["among"]["answers"]
    kept = [report and report["kept"] for report in found["among"]["reports"]]
    assert [report and report["kept"] for report in found["small"]["reports"]] == kept


@pytest.mark.parametrize("edit", ["streaming", "snapkv"])
def test_a_pool_that_holds_three_plain_requests_holds_six_that_let_keys_go(
    engine: dict[str, Any], edit: str
) -> None:
    """800 + 120 tokens, blocks of 32, chunks of 128, 87 blocks; streaming with 4 sinks and a window of
    256, `snapkv` with 200 keys kept, and as many plain requests."""
    plain, edited = engine["concurrency"]["plain"], engine["concurrency"][edit]
    assert plain["decoding"] == 3
    assert edited["decoding"] == edited["running"] == 6 and edited["preemptions"] == 0
    assert edited["steps"] < plain["steps"]
    assert edited["peak"] < plain["peak"]


def test_what_six_requests_gave_back_is_counted_in_blocks_and_bytes(engine: dict[str, Any]) -> None:
    # The last row is 918: its window begins at 663, in block 20; block 0 is kept. Of 25 full blocks of
    # prompt, 200 survivors of `snapkv` take 7.
    expected = {"streaming": (19, 19 * BLOCK), "snapkv": (18, 600)}
    for name, (blocks, tokens) in expected.items():
        for report in engine["concurrency"][name]["reports"]:
            assert (report["freed_blocks"], report["evicted_tokens"]) == (blocks, tokens)
            assert report["freed_bytes"] == blocks * BLOCK * LAYERS * bytes_per_token_and_layer()
            assert "realised_saving" not in report


def bytes_per_token_and_layer() -> int:
    """Keys and values of the bundled model in float32."""
    model = bundled_model("heed-tiny")
    assert model is not None
    shape = json.loads((model.directory / "config.json").read_text())
    head_dim = shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
    return 2 * 4 * int(shape["num_key_value_heads"]) * int(head_dim)


def test_shared_blocks_are_never_overwritten_and_hits_change_no_bit(engine: dict[str, Any]) -> None:
    found = engine["sharing"]
    evicted = found["alone"]["answers"][0]
    plain, after_a_hit, again = found["in_turn"]["answers"]
    assert plain == again and after_a_hit == evicted != plain
    assert found["at_once"]["answers"] == [plain, evicted, evicted]
    kept = found["alone"]["reports"][0]["kept"]
    assert [report["kept"] for report in found["at_once"]["reports"][1:]] == [kept, kept]
    # The plain request holds the prompt: nothing of it is freed, and survivors take blocks of their own.
    assert sum(report["freed_blocks"] for report in found["at_once"]["reports"][1:]) < 0


def test_a_replay_after_a_preemption_evicts_the_same_keys(engine: dict[str, Any]) -> None:
    alone, preempted = engine["replays"]["alone"], engine["replays"]["preempted"]
    assert preempted["preemptions"] >= 3
    for one, other in zip(alone["reports"], preempted["reports"], strict=True):
        assert one["kept"] == other["kept"]
        assert one["freed_blocks"] == other["freed_blocks"]
    assert preempted["answers"] == alone["answers"]


def test_heads_that_keep_different_numbers_say_what_block_tables_of_their_own_would_save(
    engine: dict[str, Any],
) -> None:
    report = engine["replays"]["alone"]["reports"][2]
    assert 0 < report["realised_saving"] < 1
    lengths = {len(keys) for heads in report["kept"].values() for keys in heads}
    assert len(lengths) > 1
    assert report["freed_blocks"] == 240 // BLOCK - -(-max(lengths) // BLOCK)


def check_schedules(found: Sequence[dict[str, Any]]) -> None:
    for number, schedule in enumerate(found):
        assert all(schedule[arm]["idle"] for arm in ("small", "large", "without"))
        for one, other in plain_ones(schedule):
            assert one == other, f"schedule {number}"
        answers = zip(schedule["small"]["answers"], schedule["large"]["answers"], strict=True)
        for place, (answer, expected) in enumerate(answers):
            # An aborted request has no answer.
            assert answer is None or answer == expected, f"schedule {number}, request {place}"


def plain_ones(schedule: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Answers of the plain requests, among evicting ones and without them; aborted ones are left out."""
    among = [schedule["small"]["answers"][place] for place in schedule["plain"]]
    pairs = zip(among, schedule["without"]["answers"], strict=True)
    return [(one, other) for one, other in pairs if one is not None and other is not None]


@pytest.mark.slow
def test_requests_of_20_random_schedules_have_the_same_bits_in_small_pools(tmp_path: Path) -> None:
    found = run_engine("evicting_engine.py", tmp_path, ["schedules"], schedules=20)["schedules"]
    check_schedules(found)
    assert sum(schedule["small"]["preemptions"] for schedule in found) > 0
    assert sum(len(plain_ones(schedule)) for schedule in found) >= 10


@pytest.mark.slow
def test_two_ranks_keep_what_one_keeps(tmp_path: Path) -> None:
    """Heads share a budget over both ranks, and what the fullest head of all keeps is what is freed."""
    found = []
    for ranks in (1, 2):
        directory = tmp_path / str(ranks)
        directory.mkdir()
        engine = run_engine("evicting_engine.py", directory, ["kinds"], ranks=ranks)
        found.append(engine["kinds"])
    one, two = found
    assert one["reports"] == two["reports"]
    assert [answer["tokens"] for answer in one["answers"]] == [
        answer["tokens"] for answer in two["answers"]
    ]
