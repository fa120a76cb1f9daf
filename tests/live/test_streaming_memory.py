"""Blocks between sinks and window go back to the pool, and nobody's answer changes for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_script import run_engine
from live_server import LiveServer, together

STREAMING: list[dict[str, Any]] = [{"method": "streaming_llm", "window": 64}]
BLOCK = 32


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    experiments = ["neighbours", "longer_than_the_pool"]
    return run_engine("streaming_engine.py", tmp_path_factory.mktemp("engine"), experiments)


def test_every_request_of_a_mixed_batch_has_the_bits_that_it_has_when_nothing_is_freed(
    engine: dict[str, Any],
) -> None:
    freed, kept = engine["neighbours"]["freed"], engine["neighbours"]["kept"]
    assert freed["answers"] == kept["answers"]
    # In a pool that just holds them, what one lets go is the next one's at once.
    assert engine["neighbours"]["reused"]["answers"] == kept["answers"]
    assert all(freed["answers"]) and freed["idle"] and kept["idle"]
    assert freed["peak"] < kept["peak"] / 2


def test_a_report_counts_what_went_back_to_the_pool(engine: dict[str, Any]) -> None:
    fresh, original, sharing, hit = engine["neighbours"]["freed"]["reports"]
    # The last row of 700 + 60 tokens is 758: its window begins at 695, in block 21; block 0 is kept.
    assert fresh["evicted_tokens"] == 20 * BLOCK and fresh["freed_blocks"] == 20
    assert original["evicted_tokens"] == 17 * BLOCK and original["freed_blocks"] == 17
    assert sharing["freed_blocks"] == sharing["evicted_tokens"] // BLOCK
    # Of the 192 tokens found in the prefix cache it never took those that no row of its own reads.
    assert hit["computed"][0][0] == 192
    assert hit["freed_blocks"] < hit["evicted_tokens"] // BLOCK


def test_a_prompt_longer_than_the_pool_gives_the_bits_that_it_gives_in_a_large_one(
    engine: dict[str, Any],
) -> None:
    large, small = engine["longer_than_the_pool"]["large"], engine["longer_than_the_pool"]["small"]
    assert small["answers"] == large["answers"] and all(small["answers"])
    assert small["peak"] <= 20 and small["preemptions"] == 0 and small["idle"]


def check_schedules(found: Sequence[dict[str, Any]]) -> None:
    for number, schedule in enumerate(found):
        assert schedule["small"]["idle"]
        answers = zip(schedule["small"]["answers"], schedule["large"]["answers"], strict=True)
        for place, (answer, expected) in enumerate(answers):
            # An aborted request has no answer.
            assert answer is None or answer == expected, f"schedule {number}, request {place}"


@pytest.mark.slow
def test_requests_of_20_random_schedules_equal_those_that_keep_all(tmp_path: Path) -> None:
    found = run_engine("streaming_engine.py", tmp_path, ["schedules"], schedules=20)["schedules"]
    check_schedules(found)
    assert sum(schedule["small"]["preemptions"] for schedule in found) > 0


def test_the_response_says_what_was_kept_and_what_went_back(cramped_server: LiveServer) -> None:
    tokens = cramped_server.metric("heed_kv_tokens_evicted_total", method="streaming_llm")
    blocks = cramped_server.metric("heed_kv_blocks_freed_total", method="streaming_llm")
    found = cramped_server.fresh(cramped_server.prompt(400), STREAMING, max_tokens=101)
    assert found.report is not None
    # The last row is 499; its window begins at 436, in block 13. Block 0 holds the sinks.
    report = found.report[0]
    assert report["evicted_tokens"] == 12 * BLOCK
    assert report["freed_blocks"] == 12
    # Keys and values in float32, of all layers and KV heads.
    shape = cramped_server.shape
    head_dim = shape.hidden_size // shape.num_attention_heads
    per_token = 2 * 4 * head_dim * shape.num_key_value_heads * shape.num_hidden_layers
    assert report["freed_bytes"] == 12 * BLOCK * per_token
    assert report["kept_tokens"] == 500 - 12 * BLOCK
    after = cramped_server.metric("heed_kv_tokens_evicted_total", method="streaming_llm")
    assert after - tokens == 12 * BLOCK
    after = cramped_server.metric("heed_kv_blocks_freed_total", method="streaming_llm")
    assert after - blocks == 12


def test_choices_that_share_a_prompt_free_its_blocks_once(cramped_server: LiveServer) -> None:
    response = cramped_server.raw_completion(
        cramped_server.prompt(300, start=7), n=3, max_tokens=40, ignore_eos=True, temperature=0.9,
        interventions=STREAMING,
    )  # fmt: skip
    assert response.status_code == 200, response.text
    reports = [choice["interventions"][0] for choice in response.json()["choices"]]
    # The last row is 338; its window begins at 275, in block 8.
    assert {report["evicted_tokens"] for report in reports} == {7 * BLOCK}
    # Three sequences let go of 7 blocks each. Nobody can have freed a block that others still held.
    assert 7 <= sum(report["freed_blocks"] for report in reports) <= 21


def test_requests_that_evict_nothing_say_so_and_others_say_nothing(
    cramped_server: LiveServer,
) -> None:
    short = cramped_server.fresh(cramped_server.prompt(50), STREAMING, max_tokens=4).report
    assert short is not None
    assert (short[0]["evicted_tokens"], short[0]["freed_blocks"]) == (0, 0)
    assert short[0]["kept_tokens"] == 53
    other = cramped_server.fresh(
        cramped_server.prompt(50), [{"method": "zerotuning", "gamma": 2}], max_tokens=4
    ).report
    assert other is not None and "kept_tokens" not in other[0]


def test_more_streaming_requests_than_plain_ones_run_at_once(cramped_server: LiveServer) -> None:
    """A pool of 31 blocks: 6 requests of 700 tokens would need 132."""
    prompts = [cramped_server.prompt(660, start=200 + i) for i in range(6)]
    alone = [cramped_server.fresh(prompt, STREAMING, max_tokens=24) for prompt in prompts]
    crowd = together(
        [
            lambda prompt=prompt: cramped_server.fresh(prompt, STREAMING, max_tokens=24)
            for prompt in prompts
        ]
    )
    assert [one.tokens for one in crowd] == [one.tokens for one in alone]
    assert [one.logprobs for one in crowd] == [one.logprobs for one in alone]
