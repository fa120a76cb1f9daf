"""Spans of requests, as an exporter in memory gets them from vLLM's own code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from vllm.tracing import otel
from vllm.v1.engine import output_processor

from heed_interventions.method import CacheClass
from heed_interventions.resolve import Resolution
from heed_server.api import request_spans
from heed_server.api.exchange import EngineRequest
from heed_server.api.request_spans import RequestSpans, spans_of

REPORTS = (
    {"method": "zerotuning", "status": "applied", "head_count": 18},
    {"method": "locore", "status": "neutral", "head_count": 36},
    {"method": "streaming_llm", "status": "applied", "head_count": 36},
)
ROWS = {"scope": [0, 2**31 - 1], "computed": [[4, 15]]}
RAN = {"interventions": {0: ROWS, 2: {**ROWS, "freed_blocks": 3, "evicted_tokens": 5.0}}}
KNOWN = {
    "heed.methods": ("zerotuning", "locore", "streaming_llm"),
    "heed.statuses": ("applied", "neutral", "applied"),
    "heed.head_counts": (18, 36, 36),
    "heed.cache": "salted",
}


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # The process has one provider, which cannot be taken back: vLLM is given another.
    own = {"get_tracer": provider.get_tracer, "get_current_span": trace.get_current_span}
    monkeypatch.setattr(otel, "trace", SimpleNamespace(**own))
    return exporter


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> RequestSpans:
    monkeypatch.setattr(output_processor, "instrument_manual", output_processor.instrument_manual)
    found = spans_of(client(traced=True))
    assert found is not None
    return found


def client(traced: bool) -> Any:
    return SimpleNamespace(output_processor=SimpleNamespace(tracing_enabled=traced))


def choice_ends(request_id: str) -> None:
    """What vLLM does when a choice of ten prompt tokens and six others has ended."""
    moment = {"arrival_time": 1.0, "first_token_latency": 0.5, "num_generation_tokens": 6}
    steps = dict.fromkeys(("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts"), 2.0)
    state: Any = SimpleNamespace(
        stats=SimpleNamespace(**moment, **steps), prompt_token_ids=[1] * 10, prompt_embeds=None,
        external_req_id=request_id, top_p=None, max_tokens_param=6, temperature=None, n=1,
    )  # fmt: skip
    output: Any = SimpleNamespace(trace_headers=None)
    iteration: Any = SimpleNamespace(iteration_timestamp=3.0)
    output_processor.OutputProcessor.do_tracing(SimpleNamespace(), output, state, iteration)


def serve(spans: RequestSpans, ended: Sequence[str], ran: Any) -> None:
    """Run the request "edited"; while it runs, choices of the named requests end.

    ran: what the workers' reports come to, or an error.
    """

    async def run() -> None:
        resolution = Resolution((), CacheClass.SALTED, None, None, REPORTS, (None,) * len(REPORTS))
        request = EngineRequest(resolution, prompt_length=10, completion_tokens={0: 6, 1: 6})

        async def outputs() -> AsyncGenerator[str, None]:
            try:
                for name in ended:
                    choice_ends(name)
                    yield name
            finally:
                request.ran = asyncio.get_running_loop().create_future()

        async for _ in spans.of(outputs(), "edited", request):
            pass
        assert request.ran is not None
        if isinstance(ran, Exception):
            request.ran.set_exception(ran)
        else:
            request.ran.set_result(ran)
        with suppress(RuntimeError):
            await request.ran
        await asyncio.sleep(0)  # the spans are made

    asyncio.run(run())


def told(exporter: InMemorySpanExporter) -> list[dict[str, Any]]:
    """What each span says of interventions."""
    return [
        {name: value for name, value in (span.attributes or {}).items() if name.startswith("heed.")}
        for span in exporter.get_finished_spans()
    ]


def test_the_span_of_an_edited_request_says_what_was_edited(
    exporter: InMemorySpanExporter, spans: RequestSpans
) -> None:
    serve(spans, ["edited"], {0: RAN})
    (span,) = exporter.get_finished_spans()
    assert span.name == "llm_request" and span.kind is trace.SpanKind.SERVER
    assert (span.attributes or {})["gen_ai.usage.completion_tokens"] == 6
    assert told(exporter) == [
        {
            **KNOWN,
            "heed.edited_prompt_tokens": (6, 0, 6),
            "heed.edited_generated_tokens": (5, 0, 5),
            "heed.freed_blocks": (0, 0, 3),
        }
    ]


def test_it_begins_and_ends_when_vllms_own_would_have(
    exporter: InMemorySpanExporter, spans: RequestSpans, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(time_ns=lambda: 4_000_000_000)
    monkeypatch.setattr(request_spans, "time", clock)
    serve(spans, ["edited"], {0: RAN})
    (span,) = exporter.get_finished_spans()
    assert (span.start_time, span.end_time) == (1_000_000_000, 4_000_000_000)


def test_every_choice_has_its_span(exporter: InMemorySpanExporter, spans: RequestSpans) -> None:
    serve(spans, ["edited", "edited"], {0: RAN, 1: RAN})
    first, second = told(exporter)
    assert first == second and first["heed.edited_prompt_tokens"] == (12, 0, 12)


def test_spans_of_other_requests_stay_vllms_own(
    exporter: InMemorySpanExporter, spans: RequestSpans
) -> None:
    serve(spans, ["plain"], {0: RAN})
    choice_ends("edited")
    assert told(exporter) == [{}, {}] and spans._held == {}


@pytest.mark.parametrize("ran", [{}, RuntimeError("the engine is gone")], ids=["lost", "failed"])
def test_where_the_report_is_lost_the_span_says_what_is_known_without_it(
    exporter: InMemorySpanExporter, spans: RequestSpans, ran: Any
) -> None:
    serve(spans, ["edited"], ran)
    assert told(exporter) == [KNOWN]


def test_a_server_that_writes_no_traces_is_left_as_it_is() -> None:
    before = output_processor.instrument_manual
    assert spans_of(client(traced=False)) is None
    assert output_processor.instrument_manual is before
