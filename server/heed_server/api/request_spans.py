"""Request span seam (`instrument_manual` of `vllm.v1.engine.output_processor`): what was edited stands on the span.

vLLM makes a request's span when its last token is there. What the workers ran is known a moment later, so the
span of an edited request is held until then; it ends when it would have ended.
"""

import time
from asyncio import Future
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextvars import copy_context
from functools import partial
from typing import Any

from vllm.tracing import SpanAttributes
from vllm.v1.engine import output_processor

from heed_server.api.exchange import EngineRequest, Report
from heed_server.api.reports import measured_rows

Attributes = dict[str, Any]


class RequestSpans:
    """Takes the place of the function with which vLLM makes a span.

    make: that function.
    """

    def __init__(self, make: Callable[..., None]) -> None:
        self._make = make
        self._held: dict[str, list[Callable[[Attributes], None]]] = {}

    def __call__(self, **span: Any) -> None:
        """As vLLM's own, for the span of one choice."""
        held = self._held.get(span["attributes"][SpanAttributes.GEN_AI_REQUEST_ID])
        if held is None:
            self._make(**span)
            return
        # Whatever span is current now, and not the one that is when the reports are there, is its parent.
        context, ended = copy_context(), {**span, "end_time": time.time_ns()}
        held.append(lambda told: context.run(self._make_with, ended, told))

    async def of(
        self, outputs: AsyncGenerator[Any, None], request_id: str, request: EngineRequest
    ) -> AsyncGenerator[Any, None]:
        """An engine request's outputs; its spans are held until its reports are there.

        outputs: when they are closed, the reports have been asked for (`EngineRequest.ran`).
        """
        # A client may choose a name that is in use: what is held under it already is not lost.
        self._held.setdefault(request_id, [])
        try:
            async for output in outputs:
                yield output
        finally:
            await outputs.aclose()
            if request.ran is not None:
                request.ran.add_done_callback(partial(self._finish, request_id, request))

    def _finish(
        self, request_id: str, request: EngineRequest, answer: "Future[dict[int, Report]]"
    ) -> None:
        lost = answer.cancelled() or answer.exception() is not None
        told = attributes_of(request, {} if lost else answer.result())
        for make in self._held.pop(request_id, ()):
            make(told)

    def _make_with(self, span: Mapping[str, Any], told: Attributes) -> None:
        self._make(**{**span, "attributes": {**span["attributes"], **told}})


def spans_of(engine_client: Any) -> RequestSpans | None:
    """Stand between vLLM and the spans of its requests; None where the server writes no traces."""
    if not engine_client.output_processor.tracing_enabled:
        return None
    spans = RequestSpans(output_processor.instrument_manual)
    output_processor.instrument_manual = spans
    return spans


def attributes_of(request: EngineRequest, ran: Mapping[int, Report]) -> Attributes:
    """What an engine request's span says of its interventions; lists are in the request's order.

    ran: what the workers ran, by choice; empty where their report was lost. Tokens are counted as in the
        metrics, over all choices.
    """
    reports = request.resolution.reports
    if not reports:
        return {}
    told: Attributes = {
        "heed.methods": [report["method"] for report in reports],
        "heed.statuses": [report["status"] for report in reports],
        "heed.head_counts": [report["head_count"] for report in reports],
        "heed.cache": request.resolution.cache.value,
    }
    if not ran:
        return told
    prompt, generated, freed = Counter[int](), Counter[int](), Counter[int]()
    for source, measured, rows in measured_rows(request, ran):
        prompt[source] += rows["prompt_rows"] - rows["cached_rows"]
        generated[source] += rows["generated_rows"]
        freed[source] += measured.get("freed_blocks", 0)
    counts = {
        "edited_prompt_tokens": prompt,
        "edited_generated_tokens": generated,
        "freed_blocks": freed,
    }
    return told | {
        f"heed.{name}": [count[source] for source in range(len(reports))]
        for name, count in counts.items()
    }
