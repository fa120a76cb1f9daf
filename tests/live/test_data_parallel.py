"""Two engines behind two API processes: each keeps its own edit table, and reports find their way."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from live_server import FLAGS, LiveServer, serving, together

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with pytest.MonkeyPatch.context() as patch:
        cores = sorted(os.sched_getaffinity(0))
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
        flags = [*FLAGS, "--data-parallel-size", "2"]
        with serving(tmp_path_factory.mktemp("dp2") / "server.log", flags) as server:
            yield server


def test_every_choice_of_every_request_gets_the_report_of_its_own_engine(
    two_engines: LiveServer,
) -> None:
    prompt = two_engines.prompt(120)

    def one(number: int) -> tuple[int, list[dict[str, int]]]:
        choices, tokens = 1 + number % 3, 6 + number % 4
        edits = [{"method": "zerotuning", "gamma": 1.1 + number / 10}]
        response = two_engines.raw_completion(
            prompt, n=choices, max_tokens=tokens, temperature=0.9, seed=1, ignore_eos=True,
            interventions=edits,
        )  # fmt: skip
        assert response.status_code == 200, response.text
        body = response.json()
        reported = body["choices"] if choices > 1 else [body]
        assert len(reported) == choices
        return tokens, [part["interventions"][0] for part in reported]

    for tokens, reports in together([lambda number=number: one(number) for number in range(16)]):
        for report in reports:
            assert report["prompt_rows"] == 120
            assert report["generated_rows"] == tokens - 1


def test_equal_edits_give_equal_answers_on_either_engine(two_engines: LiveServer) -> None:
    prompt = two_engines.prompt(90)
    edits = [{"method": "zerotuning", "gamma": 4}]
    answers = together([lambda: two_engines.fresh(prompt, edits) for _ in range(6)])
    assert len({tuple(answer.tokens) for answer in answers}) == 1
    assert len({tuple(answer.logprobs) for answer in answers}) == 1


def test_the_metrics_of_both_api_processes_are_added_up(two_engines: LiveServer) -> None:
    applied = two_engines.metric("heed_requests_total", method="zerotuning", outcome="applied")
    assert applied == 16 + 6


def test_each_engine_counts_the_blocks_that_it_frees(two_engines: LiveServer) -> None:
    before = two_engines.metric("heed_kv_tokens_evicted_total", method="streaming_llm")
    size = 128  # vLLM's own choice on the CPU

    def one(number: int) -> tuple[int, int]:
        edits = [{"method": "streaming_llm", "window": 64}]
        report = two_engines.fresh(two_engines.prompt(500 + number), edits).report
        assert report is not None
        return report[0]["evicted_tokens"], report[0]["freed_blocks"]

    counts = together([lambda number=number: one(number) for number in range(8)])
    assert set(counts) == {(2 * size, 2)}
    after = two_engines.metric("heed_kv_tokens_evicted_total", method="streaming_llm")
    assert after - before == 8 * 2 * size
