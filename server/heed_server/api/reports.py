"""Reports: fetched from the workers, and put together with what was resolved at the door."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from heed_interventions.vision.vhr import COMPANION
from heed_server.api import found_keys, image_attention
from heed_server.api.exchange import EngineRequest, Report
from heed_server.metrics import Metrics

_MEMORY = ("freed_blocks", "freed_bytes", "realised_saving", "kept", "kept_left_out")
"""What the workers measure of memory and reports pass on as it is."""

_OF_HEADS = {"found": found_keys.of_all_ranks, "on_images": image_attention.of_all_ranks}
"""Parts of a report of which each tensor-parallel rank has those of its own heads."""

Fetch = Callable[[list[str]], Awaitable[Iterable[Mapping[str, Mapping[int, Report]]]]]
"""Asks every engine's workers for reports by id; one mapping per worker, equal within an engine."""


class ReportCollector:
    """Batches requests for reports: whoever asks while a call is under way shares the next one."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._waiting: dict[str, asyncio.Future[dict[int, Report]]] = {}
        self._task: asyncio.Task[None] | None = None

    def collect(self, report_id: str) -> "asyncio.Future[dict[int, Report]]":
        """A future of the reports of one engine request, by choice."""
        future: asyncio.Future[dict[int, Report]] = asyncio.get_running_loop().create_future()
        self._waiting[report_id] = future
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return future

    async def _run(self) -> None:
        while self._waiting:
            wanted, self._waiting = self._waiting, {}
            try:
                answers = list(await self._fetch(list(wanted)))
            except Exception as error:
                for future in wanted.values():
                    if not future.done():
                        future.set_exception(error)
                        future.exception()  # a client that left never asks for it
                continue
            for report_id, future in wanted.items():
                found: dict[int, Report] = {}
                for answer in answers:
                    found.update(answer.get(report_id, {}))
                if not future.done():
                    future.set_result(found)


def of_workers(
    workers: Sequence[dict[str, dict[int, Report]]],
) -> Mapping[str, Mapping[int, Report]]:
    """One engine's reports out of those of its workers: all run the same rows, and any may have failed."""
    first = workers[0]
    for answer in workers[1:]:
        for report_id, choices in answer.items():
            for choice, report in choices.items():
                merged = first[report_id][choice]
                if report["failure"] is not None:
                    merged["failure"] = report["failure"]
                for source, measured in report["interventions"].items():
                    of_all = merged["interventions"][source]
                    for part, merge in _OF_HEADS.items():
                        if part in measured and part in of_all:
                            of_all[part] = merge(of_all[part], measured[part])
    return first


def assemble(request: EngineRequest, choice: int, ran: Mapping[int, Report]) -> list[Report]:
    """The reports of one choice, in the order of the request's interventions.

    ran: what the workers ran for the engine request, by choice (`EditedRequests.take`).

    Raises:
        RuntimeError: a worker could not carry out a set that had been admitted.
    """
    failure = next((report["failure"] for report in ran.values() if report["failure"]), None)
    if failure:
        raise RuntimeError(f"the interventions were not carried out: {failure}")
    worker = ran.get(choice, {})
    lost = {"reason": "the workers' report was lost"} if request.ran and not worker else {}
    tokens = request.completion_tokens.get(choice, 0)
    per_source = worker.get("interventions", {})
    return [
        resolved
        | row_counts(per_source.get(index), request.prompt_length, tokens)
        | memory_counts(per_source.get(index), request.prompt_length, tokens)
        | found_keys.sink_counts(per_source.get(index))
        | image_attention.image_counts(per_source.get(index))
        | per_source.get(index, {}).get("told", {})
        | companion_counts(resolved, request.twin_cached)
        | lost
        for index, resolved in enumerate(request.resolution.reports)
    ]


def count_edited_tokens(
    request: EngineRequest, metrics: Metrics, answer: "asyncio.Future[dict[int, Report]]"
) -> None:
    """Put what ran for one engine request into the metrics (a done-callback of its reports)."""
    if answer.cancelled() or answer.exception() is not None:
        return
    tokens_evicted: dict[str, float] = {}
    blocks_freed: Counter[str] = Counter()
    for source, measured, rows in measured_rows(request, answer.result()):
        method = request.resolution.reports[source]["method"]
        metrics.edited(
            method,
            prompt=rows["prompt_rows"] - rows["cached_rows"],
            generated=rows["generated_rows"],
        )
        if "freed_blocks" in measured:
            evicted = tokens_evicted.get(method, 0) + measured["evicted_tokens"]
            tokens_evicted[method] = evicted
            blocks_freed[method] += measured["freed_blocks"]
    for method, evicted in tokens_evicted.items():
        metrics.released(method, tokens=evicted, blocks=blocks_freed[method])


def measured_rows(
    request: EngineRequest, ran: Mapping[int, Report]
) -> Iterator[tuple[int, Mapping[str, Any], dict[str, int]]]:
    """What ran of each intervention in each choice: its place in the request, what the workers measured, its rows.

    ran: by choice.
    """
    for choice, worker in ran.items():
        tokens = request.completion_tokens.get(choice, 0)
        for source, measured in worker.get("interventions", {}).items():
            yield source, measured, row_counts(measured, request.prompt_length, tokens)


def row_counts(
    measured: Mapping[str, Any] | None, prompt_length: int, completion_tokens: int
) -> dict[str, int]:
    """Distinct rows in an intervention's scope, from the ranges that the worker computed.

    A row is one absolute position. The last token sampled is never a row; rows that the worker
    computed past it (a stop string is found after the fact) are not counted.
    """
    if measured is None:
        return {"prompt_rows": 0, "cached_rows": 0, "generated_rows": 0}
    computed: list[tuple[int, int]] = [(start, stop) for start, stop in measured["computed"]]
    scope_start, scope_stop = measured["scope"]
    last = prompt_length + max(completion_tokens - 1, 0)
    computed_prompt = _overlap(computed, 0, prompt_length)
    seen_prompt = max((stop for _, stop in computed), default=0) > 0
    prompt = max(0, min(scope_stop, prompt_length) - scope_start) if seen_prompt else 0
    return {
        "prompt_rows": prompt,
        "cached_rows": prompt - computed_prompt if prompt else 0,
        "generated_rows": _overlap(computed, prompt_length, last),
    }


def companion_counts(resolved: Report, cached: int | None) -> Report:
    """What the run without the image cost; empty where there was none.

    cached: tokens of its prompt that came out of the prefix cache; None: it has not run.
    """
    if COMPANION not in resolved or cached is None:
        return {}
    return {COMPANION: {**resolved[COMPANION], "cached_tokens": cached}}


def memory_counts(
    measured: Mapping[str, Any] | None, prompt_length: int, completion_tokens: int
) -> dict[str, Any]:
    """What an intervention that lets keys go left in the cache; empty for all others.

    Tokens are means over layers and KV heads. A stream's are counted by whole blocks, as memory is: a
    kept one may be hidden from all rows to come.
    """
    if measured is None or "freed_blocks" not in measured:
        return {}
    cached = prompt_length + max(completion_tokens - 1, 0)
    counts = {key: measured[key] for key in _MEMORY if key in measured}
    evicted = whole(measured["evicted_tokens"])
    return {"kept_tokens": whole(max(cached - evicted, 0)), "evicted_tokens": evicted} | counts


def whole(tokens: float) -> int | float:
    """A mean number of tokens to a hundredth, an integer where it is one."""
    rounded = round(tokens, 2)
    return int(rounded) if rounded == int(rounded) else rounded


def _overlap(ranges: Iterable[tuple[int, int]], start: int, stop: int) -> int:
    return sum(max(0, min(b, stop) - max(a, start)) for a, b in ranges)
