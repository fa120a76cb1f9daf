"""Runs without the image: what the worker keeps of them, and how they go to the engine out of sight."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.kernels.paged_model import layout_of
from vllm.sampling_params import RequestOutputKind

from heed_kernels.cpu.search import LayerInputs
from heed_kernels.edits import OPEN, Edit, HeadChoice, HeadSet, KeyRanges, Rows
from heed_kernels.inspection import Inspection
from heed_kernels.table import EditTable
from heed_server.api.twins import TwinRequest, TwinRunner, twin_of, without
from heed_server.engine.books import twins
from heed_server.engine.books.compared_heads import ComparedHeads
from heed_server.engine.books.edited_requests import EditedRequests
from heed_server.engine.books.inspected_requests import InspectedRequests
from heed_server.engine.books.inspections_cpu import InspectingOnCPU
from heed_server.engine.books.twins import Twins
from heed_server.engine.payload import RESERVED_KEY, Payload, Twin, pack, unpack

LAYERS, HEADS, HEAD_DIM = 3, 4, 16
PROMPT, TEXT = 12, 8
ON = HeadSet((0, 0b1111, 0b1111))
VISUAL = KeyRanges(((2, 6),))
CHOICE = HeadChoice(ON, Rows(PROMPT - 1, OPEN), PROMPT - 1, VISUAL, 2, 2.0, False, 0, twin=True)
OTHER: Edit = HeadChoice(ON, Rows(PROMPT - 1, OPEN), PROMPT - 1, VISUAL, 2, 2.0, False, 0)
FAR = [0.0, 3.0, 1.0, 2.0]
"""How far each head's output is from its twin's; the two farthest are to be chosen."""


def book() -> EditedRequests:
    table = EditTable(slots=4, layers=LAYERS, query_heads=HEADS, kv_heads=2)
    requests = EditedRequests(table)
    kept = Twins()
    requests.comparing = ComparedHeads(table, lambda local: local, kept)
    requests.inspected = InspectedRequests(table, InspectingOnCPU(table), kept)
    return requests


def twin(report: str = "r", choices: int = 1) -> Payload:
    return Payload(f"twin of {report}", 1, TEXT, None, (), twin=Twin(report, choices, (1, 2)))


def request(report: str = "r", choices: int = 1) -> Payload:
    return Payload(report, choices, PROMPT, PROMPT - 1, (CHOICE,))


def run(requests: EditedRequests, name: str, first: int, end: int) -> torch.Tensor:
    """A step of one request; row p of its output is p everywhere, but that in row P - 1 heads are as far
    from the twin's last row as FAR says. Returns the last row of layer 1."""
    step = requests.plan([name], np.array([0, end - first]), np.array([first]))
    assert step is not None
    rows = torch.arange(float(first), float(end))[:, None, None].repeat(1, HEADS, HEAD_DIM)
    if first < PROMPT <= end:
        rows[PROMPT - 1 - first] = TEXT - 1
        rows[PROMPT - 1 - first, :, 0] += torch.tensor(FAR)
    pages = torch.zeros(1, 2, 16, 2 * HEAD_DIM)
    table = torch.zeros((1, 1), dtype=torch.int32)
    query = torch.zeros_like(rows)
    inputs = LayerInputs(query, pages, table, 1.0, None, layout_of(16, HEAD_DIM))
    outputs = [rows.clone() for _ in range(LAYERS)]
    for layer, output in enumerate(outputs):
        for observer in step.observers:
            observer.before_edits(layer, inputs)
        for comparer in step.comparers:
            comparer.after_edits(layer, inputs, output)
    return outputs[1][-1]


def run_twin(requests: EditedRequests, payload: Payload, cuts: Sequence[int] = (TEXT,)) -> None:
    requests.enter("t", payload, 0)
    for first, end in zip([0, *cuts], cuts, strict=False):
        output = run(requests, "t", first, end)
        assert torch.equal(output, torch.full((HEADS, HEAD_DIM), end - 1.0)), "it was edited"
    requests.leave("t", finished=True)


def looked_at(*edits: Edit) -> Payload:
    """A request whose last row's outputs are compared with its twin's in layers 1 and 2, heads 1 to 3."""
    asked = Inspection(PROMPT, (1, 2), (1, 2, 3), (), (), PROMPT, ("apart",), VISUAL.ranges)
    return Payload("r", 1, PROMPT, None, edits, (), asked)


def apart(requests: EditedRequests) -> list[Any]:
    assert requests.inspected is not None
    taken = requests.inspected.take("r")
    assert taken is not None and taken["failure"] is None, taken
    shape, data = taken["arrays"]["apart"]
    return list(np.frombuffer(data, "<f4").reshape(shape).tolist())


def told(requests: EditedRequests, report: str = "r") -> dict[int, Any]:
    reports = requests.take([report])[report]
    return {choice: each["interventions"][0].get("told") for choice, each in reports.items()}


@pytest.mark.parametrize("cuts", [[8], [3, 8], [7, 8]])
def test_heads_are_chosen_by_their_distance_from_the_twin_s_last_row(cuts: list[int]) -> None:
    requests = book()
    run_twin(requests, twin(), cuts)
    requests.enter("a", request(), 0)
    output = run(requests, "a", 0, PROMPT)
    assert (output[:, 1] / (TEXT - 1)).tolist() == [1.0, 2.0, 1.0, 2.0]
    requests.leave("a", finished=True)
    assert told(requests) == {0: {"chosen_heads": {"1": [1, 3], "2": [1, 3]}}}


def test_every_choice_takes_what_the_twin_left_and_then_it_is_gone() -> None:
    requests = book()
    assert requests.comparing is not None
    run_twin(requests, twin(choices=2))
    for name in ("0_a", "1_a"):
        requests.enter(name, request(choices=2), 0)
        run(requests, name, 0, PROMPT)
    assert not requests.comparing._twins._left
    assert all(not outputs for outputs in requests.comparing._taken.values())
    for name in ("0_a", "1_a"):
        requests.leave(name, finished=True)
    assert not requests.comparing._taken
    assert told(requests) == {n: {"chosen_heads": {"1": [1, 3], "2": [1, 3]}} for n in (0, 1)}


@pytest.mark.parametrize("computed", [4, PROMPT], ids=["before the choice", "after it"])
def test_a_request_that_is_preempted_needs_no_other_twin(computed: int) -> None:
    requests = book()
    run_twin(requests, twin())
    requests.enter("a", request(), 0)
    run(requests, "a", 0, computed)
    requests.leave("a", finished=False)
    requests.enter("a", request(), 0)
    run(requests, "a", 0, PROMPT)
    requests.leave("a", finished=True)
    assert told(requests) == {0: {"chosen_heads": {"1": [1, 3], "2": [1, 3]}}}


@pytest.mark.parametrize("cuts", [[12], [5, 12], [11, 12]])
@pytest.mark.parametrize("edits", [(), (CHOICE,)], ids=["plain", "beside a choice"])
def test_an_inspection_tells_the_distance_from_the_twin_before_any_gain(
    cuts: list[int], edits: tuple[Edit, ...]
) -> None:
    requests = book()
    payload = twin()
    assert payload.twin is not None
    taken = replace(payload.twin, taken=1 + len(edits))
    run_twin(requests, replace(payload, twin=taken))
    requests.enter("a", looked_at(*edits), 0)
    # A request that is preempted begins again, with the same twin.
    run(requests, "a", 0, 3)
    requests.leave("a", finished=False)
    requests.enter("a", looked_at(*edits), 0)
    for first, end in zip([0, *cuts], cuts, strict=False):
        run(requests, "a", first, end)
    assert apart(requests) == [FAR[1:], FAR[1:]]
    requests.leave("a", finished=True)
    if edits:
        assert told(requests) == {0: {"chosen_heads": {"1": [1, 3], "2": [1, 3]}}}


def test_an_inspection_whose_twin_left_nothing_fails_in_its_report() -> None:
    requests = book()
    requests.enter("a", looked_at(), 0)
    assert requests.take_failed() == ["a"]


def test_a_twin_that_is_preempted_starts_again() -> None:
    requests = book()
    requests.enter("t", twin(), 0)
    run(requests, "t", 0, 5)
    requests.leave("t", finished=False)
    run_twin(requests, twin(), [5, 8])
    requests.enter("a", request(), 0)
    assert requests.take_failed() == []


@pytest.mark.parametrize("cut", [None, 5], ids=["no twin", "half a twin"])
def test_a_request_whose_twin_left_nothing_fails_in_its_report(cut: int | None) -> None:
    requests = book()
    if cut is not None:
        requests.enter("t", twin(), 0)
        run(requests, "t", 0, cut)
        requests.leave("t", finished=True)
    requests.enter("a", request(), 0)
    assert requests.take_failed() == ["a"]
    requests.leave("a", finished=True)
    failure = requests.take(["r"])["r"][0]["failure"]
    assert "left nothing to compare with" in failure
    assert requests.rows_in_use == 0


def test_what_a_twin_left_goes_with_the_end_of_its_request_or_with_too_many_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = book()
    assert requests.comparing is not None
    run_twin(requests, twin("gone"))
    assert requests.take(["gone"]) == {}
    assert not requests.comparing._twins._left
    monkeypatch.setattr(twins, "LEFT_KEPT", 2)
    for report in ("first", "second", "third"):
        run_twin(requests, twin(report))
    assert list(requests.comparing._twins._left) == ["second", "third"]
    assert requests.take(["twin of third"]) == {}, "nobody asks for a twin's report"


def test_a_twin_is_the_prompt_without_the_image_under_the_request_s_own_salt() -> None:
    token_ids = list(range(100, 100 + PROMPT))
    prompt = {"type": "multimodal", "prompt_token_ids": token_ids, "cache_salt": "mine"}
    assert twin_of(prompt, (OTHER,), "r", 1) is None
    asked = looked_at().inspection
    assert asked is not None
    assert twin_of(prompt, (), "r", 1, replace(asked, without=())) is None
    for edits, layers, taken in (((), (0, 2), 1), ((CHOICE,), (0, 1, 2), 2)):
        shared = twin_of(prompt, edits, "r", 1, replace(asked, layers=(0, 2)))
        assert shared is not None and shared.params.extra_args is not None
        sent = unpack(shared.params.extra_args[RESERVED_KEY])
        assert sent.twin == Twin("r", taken, layers)
    made = twin_of(prompt, (CHOICE,), "r", 3)
    assert made is not None
    assert made.prompt == {
        "type": "token",
        "prompt_token_ids": [100, 101, *range(106, 112)],
        "cache_salt": "mine",
    }
    assert (made.params.max_tokens, made.params.n) == (1, 1)
    sent = unpack(made.params.extra_args[RESERVED_KEY])
    assert sent.twin == Twin("r", 3, (1, 2))
    assert (sent.edits, sent.prompt_length, sent.publication_limit) == ((), TEXT, None)
    assert sent.report != "r"
    assert unpack(pack(sent)) == sent


def test_tokens_are_left_out_at_both_ends_and_between() -> None:
    assert without(list(range(8)), KeyRanges(((0, 2), (4, 5), (6, 8)))) == [2, 3, 5]


class Processor:
    """vLLM's output processor: the statistics of each call, and whom they count."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, list[str]]] = []

    def process_outputs(
        self, outputs: Any, timestamp: Any = None, statistics: Any = None, **rest: Any
    ) -> Any:
        names = [each.request_id for each in outputs]
        self.calls.append((statistics, names))
        return SimpleNamespace(request_outputs=names, reqs_to_abort=[f"end {n}" for n in names])


def engine(engines: Sequence[bytes] = (b"0",)) -> Any:
    core = SimpleNamespace(core_engines=list(engines), engine_inflight=Counter())
    return SimpleNamespace(engine_core=core, output_processor=Processor())


def finished(reason: str | None) -> Any:
    output = SimpleNamespace(finish_reason=reason)
    return SimpleNamespace(outputs=[output], num_cached_tokens=5)


SENT = TwinRequest({"prompt_token_ids": [1]}, SimpleNamespace(output_kind=RequestOutputKind.DELTA))  # type: ignore[arg-type]


def test_a_twin_goes_with_what_it_shares_and_is_counted_apart() -> None:
    client = engine()
    runner = TwinRunner(client)
    processor, statistics = client.output_processor, object()
    calls: list[Any] = []

    async def generate(prompt: Any, params: Any, name: str, **rest: Any) -> AsyncGenerator[Any]:
        calls.append((prompt, params, rest))
        outputs = [SimpleNamespace(request_id=each) for each in ("cmpl-1", f"{name}-8fa2")]
        done = processor.process_outputs(outputs, 1.0, statistics, weight_version=None)
        assert sorted(done.request_outputs) == sorted(each.request_id for each in outputs)
        assert len(done.reqs_to_abort) == 2
        yield finished("length")

    rest = {"lora_request": "adapter", "priority": 3, "session_id": "s", "prompt_text": "text"}
    assert asyncio.run(runner.run(generate, SENT, rest)) == 5
    assert calls == [(SENT.prompt, SENT.params, {"lora_request": "adapter", "priority": 3})]
    (apart, (twin_name,)), shown = processor.calls
    assert twin_name.startswith("heed-twin-") and apart is not statistics
    assert shown == (statistics, ["cmpl-1"])
    # Without twins there is one call, as if nobody stood before it.
    processor.process_outputs([SimpleNamespace(request_id="cmpl-2")], 2.0, statistics)
    assert processor.calls[2:] == [(statistics, ["cmpl-2"])]


@pytest.mark.parametrize("reason", ["abort", "error", None])
def test_a_twin_that_does_not_end_is_an_error(reason: str | None) -> None:
    async def generate(*given: Any, **rest: Any) -> AsyncGenerator[Any]:
        if reason is not None:
            yield finished(reason)

    with pytest.raises(RuntimeError, match="without its image"):
        asyncio.run(TwinRunner(engine()).run(generate, SENT, {}))


def test_an_error_of_the_engine_and_a_client_that_leaves_get_through() -> None:
    runner = TwinRunner(engine())
    closed: list[str] = []

    async def broken(*given: Any, **rest: Any) -> AsyncGenerator[Any]:
        raise ValueError("too long")
        yield

    async def endless(*given: Any, **rest: Any) -> AsyncGenerator[Any]:
        try:
            await asyncio.Event().wait()
            yield
        finally:
            closed.append("closed")

    async def leave() -> None:
        task = asyncio.create_task(runner.run(endless, SENT, {}))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with pytest.raises(ValueError, match="too long"):
        asyncio.run(runner.run(broken, SENT, {}))
    asyncio.run(leave())
    assert closed == ["closed"]
    assert runner._running == 0


def test_of_several_engines_the_least_busy_one_gets_both() -> None:
    client = engine([b"0", b"1", b"2"])
    runner = TwinRunner(client)
    client.engine_core.engine_inflight.update({b"0": 2, b"2": 1})
    assert runner.together({"priority": 1}) == {"priority": 1, "data_parallel_rank": 1}
    assert runner.together({"data_parallel_rank": 2}) == {"data_parallel_rank": 2}
    client.engine_core.engine_inflight.update({b"1": 5})
    assert runner.together({})["data_parallel_rank"] == 2


def test_one_engine_is_not_named() -> None:
    assert TwinRunner(engine()).together({"priority": 1}) == {"priority": 1}
