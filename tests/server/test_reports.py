import asyncio
from collections.abc import Iterable, Mapping

import pytest
from prometheus_client import CollectorRegistry

from heed_interventions.method import CacheClass
from heed_interventions.resolve import Resolution
from heed_server.api.exchange import EngineRequest, Report
from heed_server.api.reports import (
    ReportCollector,
    count_edited_tokens,
    memory_counts,
    row_counts,
)
from heed_server.metrics import Metrics

OPEN = 2**31 - 1


def test_all_rows_of_a_fresh_request_are_the_prompt_and_all_sampled_tokens_but_the_last() -> None:
    measured = {"scope": [0, OPEN], "computed": [[0, 15]]}
    counts = row_counts(measured, prompt_length=10, completion_tokens=6)
    assert counts == {"prompt_rows": 10, "cached_rows": 0, "generated_rows": 5}


def test_prompt_rows_that_were_not_computed_came_out_of_the_cache() -> None:
    measured = {"scope": [0, OPEN], "computed": [[8, 12]]}
    counts = row_counts(measured, prompt_length=10, completion_tokens=3)
    assert counts == {"prompt_rows": 10, "cached_rows": 8, "generated_rows": 2}


def test_rows_computed_past_a_stop_string_are_not_counted() -> None:
    measured = {"scope": [0, OPEN], "computed": [[0, 40]]}
    assert row_counts(measured, 10, 4)["generated_rows"] == 3


def test_a_scope_of_generated_rows_has_no_prompt_rows() -> None:
    measured = {"scope": [10, OPEN], "computed": [[10, 14]]}
    counts = row_counts(measured, 10, 5)
    assert counts == {"prompt_rows": 0, "cached_rows": 0, "generated_rows": 4}


def test_the_last_prompt_row_counts_once_with_the_generated_ones_after_it() -> None:
    measured = {"scope": [9, OPEN], "computed": [[9, 14]]}
    counts = row_counts(measured, 10, 5)
    assert counts == {"prompt_rows": 1, "cached_rows": 0, "generated_rows": 4}


def test_nothing_ran_means_no_rows() -> None:
    assert set(row_counts(None, 10, 5).values()) == {0}


def test_kept_tokens_are_all_that_were_cached_less_the_evicted_ones() -> None:
    measured = {"freed_blocks": 2, "evicted_tokens": 64}
    assert memory_counts(measured, prompt_length=100, completion_tokens=11) == {
        "kept_tokens": 110 - 64,
        "evicted_tokens": 64,
        "freed_blocks": 2,
    }
    assert memory_counts({"scope": [0, 4]}, 100, 11) == memory_counts(None, 100, 11) == {}


def test_an_eviction_reports_means_over_heads_and_what_its_blocks_saved() -> None:
    measured = {
        "freed_blocks": 18, "freed_bytes": 1 << 20, "evicted_tokens": 600.25, "realised_saving": 0.8,
        "kept": {"0": [[0, 1]]},
    }  # fmt: skip
    assert memory_counts(measured, prompt_length=800, completion_tokens=1) == {
        "kept_tokens": 199.75,
        "evicted_tokens": 600.25,
        "freed_blocks": 18,
        "freed_bytes": 1 << 20,
        "realised_saving": 0.8,
        "kept": {"0": [[0, 1]]},
    }


@pytest.mark.parametrize("last", [18, 3])
def test_the_metrics_count_the_blocks_that_all_choices_of_a_prompt_gained_together(
    last: int,
) -> None:
    """Where they took more than they gave back, another counter goes up."""
    registry = CollectorRegistry()
    metrics = Metrics("cpu", registry)
    reports = ({"method": "streaming_llm"},)
    resolution = Resolution((), CacheClass.SHARED, None, None, reports, (None,))
    request = EngineRequest(resolution, 800, {0: 4, 1: 4})
    scope = {"scope": [800, OPEN], "computed": [[800, 803]], "evicted_tokens": 600.5}
    freed = {0: -7, 1: last}
    answer: asyncio.Future[dict[int, Report]] = asyncio.Future(loop=asyncio.new_event_loop())
    answer.set_result(
        {
            choice: {"interventions": {0: {**scope, "freed_blocks": n}}}
            for choice, n in freed.items()
        }
    )
    count_edited_tokens(request, metrics, answer)
    label = {"method": "streaming_llm"}
    assert registry.get_sample_value("heed_kv_blocks_freed_total", label) == max(last - 7, 0)
    assert registry.get_sample_value("heed_kv_blocks_taken_total", label) == max(7 - last, 0)
    assert registry.get_sample_value("heed_kv_tokens_evicted_total", label) == 1201


def test_reports_asked_for_together_share_calls_to_the_workers() -> None:
    calls: list[list[str]] = []

    async def fetch(ids: list[str]) -> Iterable[Mapping[str, Mapping[int, Report]]]:
        calls.append(ids)
        await asyncio.sleep(0.01)
        return [{name: {0: {"id": name}}} for name in ids]

    async def ask() -> list[dict[int, Report]]:
        collector = ReportCollector(fetch)
        return await asyncio.gather(*(collector.collect(f"r{i}") for i in range(20)))

    answers = asyncio.run(ask())
    assert [answer[0]["id"] for answer in answers] == [f"r{i}" for i in range(20)]
    assert len(calls) <= 2


def test_reports_of_several_engines_are_merged_by_choice() -> None:
    async def fetch(ids: list[str]) -> Iterable[Mapping[str, Mapping[int, Report]]]:
        return [{ids[0]: {0: {"engine": 0}}}, {}, {ids[0]: {1: {"engine": 2}}}]

    async def ask() -> dict[int, Report]:
        return await ReportCollector(fetch).collect("r")

    assert asyncio.run(ask()) == {0: {"engine": 0}, 1: {"engine": 2}}


def test_a_failed_call_fails_its_own_requests_and_no_later_ones() -> None:
    failing = True

    async def fetch(ids: list[str]) -> Iterable[Mapping[str, Mapping[int, Report]]]:
        if failing:
            raise RuntimeError("engine gone")
        return [{ids[0]: {0: {}}}]

    async def ask() -> tuple[BaseException | None, dict[int, Report]]:
        nonlocal failing
        collector = ReportCollector(fetch)
        first = collector.collect("a")
        await asyncio.wait([first])
        failing = False
        return first.exception(), await collector.collect("b")

    error, later = asyncio.run(ask())
    assert isinstance(error, RuntimeError)
    assert later == {0: {}}
